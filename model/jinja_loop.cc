#include "model/jinja_loop.h"

#include "model/jinja_operators.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

// loop.cycle and loop.changed, for as long as the loop runs.
class LoopMethod final : public Object {
 public:
  using Body = std::function<Value(Run&, Arguments)>;
  explicit LoopMethod(Body body) : body_(std::move(body)) {}
  std::string_view type_name() const override { return "method"; }
  bool callable() const override { return true; }
  Value call(Run& run, Arguments arguments) override { return body_(run, std::move(arguments)); }

 private:
  Body body_;
};

}  // namespace

LoopContext::LoopContext(Run& run, Value iterable, Condition wanted) {
  Cursor cursor(run, std::move(iterable));
  const auto known = wanted ? std::nullopt : cursor.length();
  state_.emplace(State{std::move(cursor), std::move(wanted), known});
}

LoopContext::State& LoopContext::state() const {
  if (!state_) runtime_error("'loop' is used after its loop");
  return const_cast<State&>(*state_);
}

// The next item from the source, what was taken ahead excepted.
bool LoopContext::pull(Value& item) {
  State& s = state();
  while (s.cursor.next(item)) {
    if (!s.wanted || s.wanted(item)) return true;
  }
  return false;
}

bool LoopContext::look_ahead(Value& item) {
  State& s = state();
  if (s.next_ahead == s.ahead.size()) {
    s.ahead.clear();
    s.next_ahead = 0;
    Value pulled;
    if (!pull(pulled)) return false;
    s.ahead.push_back(std::move(pulled));
  }
  item = s.ahead[s.next_ahead];
  return true;
}

bool LoopContext::advance(Value& item) {
  State& s = state();
  if (s.next_ahead < s.ahead.size()) {
    item = std::move(s.ahead[s.next_ahead++]);
  } else if (!pull(item)) {
    return false;
  }
  ++index0_;
  s.previous = std::move(s.current);
  s.current = item;
  return true;
}

std::optional<std::size_t> LoopContext::length(Run&) {
  State& s = state();
  if (!s.length) {
    std::vector<Value> rest(s.ahead.begin() + static_cast<std::ptrdiff_t>(s.next_ahead),
                            s.ahead.end());
    for (Value item; pull(item);) rest.push_back(std::move(item));
    s.ahead = std::move(rest);
    s.next_ahead = 0;
    s.length = s.ahead.size() + static_cast<std::size_t>(index0_ + 1);
  }
  return s.length;
}

Value LoopContext::call(Run&, Arguments) {
  type_error("the loop must have the 'recursive' marker to be called");
}

std::string LoopContext::repr(Run& run) const {
  const auto size = const_cast<LoopContext*>(this)->length(run);
  return words({"<LoopContext ", integer_text(index0_ + 1), "/", std::to_string(*size), ">"});
}

Value LoopContext::method(bool cycle) {
  return std::make_shared<LoopMethod>(
      [loop = shared_from_this(), cycle](Run& run, Arguments arguments) -> Value {
        State& s = loop->state();
        if (!arguments.named.empty())
          type_error("loop.cycle() and loop.changed() take no keyword arguments");
        if (cycle) {
          if (arguments.positional.empty()) type_error("no items for cycling given");
          return arguments
              .positional[static_cast<std::size_t>(loop->index0_) % arguments.positional.size()];
        }
        Value value = run.tuple(std::move(arguments.positional));
        if (!is<Unset>(s.changed) && equal(run, s.changed, value)) return false;
        s.changed = std::move(value);
        return true;
      });
}

std::optional<Value> LoopContext::attribute(Run& run, std::string_view name) {
  State& s = state();
  Value item;
  if (name == "index") return index0_ + 1;
  if (name == "index0") return index0_;
  if (name == "first") return index0_ == 0;
  if (name == "last") return !look_ahead(item);
  if (name == "length") return static_cast<Int>(*length(run));
  if (name == "revindex") return static_cast<Int>(*length(run)) - index0_;
  if (name == "revindex0") return static_cast<Int>(*length(run)) - index0_ - 1;
  if (name == "depth") return Int{1};
  if (name == "depth0") return Int{0};
  if (name == "previtem") return index0_ == 0 ? undefined("there is no previous item") : s.previous;
  if (name == "nextitem") return look_ahead(item) ? item : undefined("there is no next item");
  if (name == "cycle" || name == "changed") return method(name == "cycle");
  return std::nullopt;
}

}  // namespace moiety::jinja
