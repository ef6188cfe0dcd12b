#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "model/jinja_run.h"

namespace moiety::jinja {

/// The variable `loop`. Items are asked for as late as in Jinja: one ahead where the template looks
/// ahead.
class LoopContext final : public Object, public std::enable_shared_from_this<LoopContext> {
 public:
  /// Which items the loop takes; empty: all.
  using Condition = std::function<bool(const Value&)>;
  LoopContext(Run& run, Value iterable, Condition wanted);

  /// Goes to the next item; false at the end.
  bool advance(Value& item);

  /// Empties the loop when it has ended, so that nothing lives on in values that refer to it.
  class Ended {
   public:
    explicit Ended(LoopContext& loop) : loop_(loop) {}
    Ended(const Ended&) = delete;
    Ended& operator=(const Ended&) = delete;
    ~Ended() { loop_.state_.reset(); }

   private:
    LoopContext& loop_;
  };

  std::string_view type_name() const override { return "LoopContext"; }
  bool callable() const override { return true; }
  Value call(Run& run, Arguments arguments) override;
  std::string repr(Run& run) const override;
  std::optional<std::size_t> length(Run& run) override;
  std::optional<Value> attribute(Run& run, std::string_view name) override;

 private:
  struct State {
    Cursor cursor;
    Condition wanted;
    std::optional<std::size_t> length;
    std::vector<Value> ahead = {};  ///< items already taken from the cursor, from `next_ahead` on
    std::size_t next_ahead = 0;
    Value previous = {}, current = {}, changed = {};
  };

  State& state() const;
  bool pull(Value& item);
  bool look_ahead(Value& item);
  Value method(bool cycle);

  Int index0_ = -1;
  std::optional<State> state_;
};

}  // namespace moiety::jinja
