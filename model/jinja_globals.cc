// Functions that every template can call.

#include <array>
#include <ctime>
#include <functional>

#include "model/jinja_filters.h"
#include "model/jinja_operators.h"

namespace moiety::jinja {
namespace {

class Function final : public Object {
 public:
  using Body = std::function<Value(Run&, Arguments)>;
  Function(std::string_view type, Body body) : type_(type), body_(std::move(body)) {}
  std::string_view type_name() const override { return type_; }
  bool callable() const override { return true; }
  Value call(Run& run, Arguments arguments) override { return body_(run, std::move(arguments)); }

 private:
  std::string_view type_;
  Body body_;
};

int deepest(const std::vector<Value>& items) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, depth_of(item));
  return depth;
}

class Cycler final : public Object, public std::enable_shared_from_this<Cycler> {
 public:
  explicit Cycler(std::vector<Value> items)
      : items_(std::move(items)), depth_(deepest(items_) + 1) {
    if (depth_ > kMaxValueDepth) throw Failure{Failure::Kind::kLimit, "cyclers nested too deeply"};
  }
  std::string_view type_name() const override { return "Cycler"; }
  int depth() const override { return depth_; }
  std::optional<Value> attribute(Run& run, std::string_view name) override {
    if (name == "current") return items_[next_];
    if (name == "pos") return static_cast<Int>(next_);
    if (name == "items") return run.tuple(items_);
    if (name != "next" && name != "reset") return std::nullopt;
    const bool reset = name == "reset";
    return std::make_shared<Function>(
        "method", [self = shared_from_this(), reset](Run&, Arguments arguments) -> Value {
          const Bound bound("next", {}, arguments);
          if (reset) {
            self->next_ = 0;
            return None{};
          }
          const std::size_t current = self->next_;
          self->next_ = (current + 1) % self->items_.size();
          return self->items_[current];
        });
  }

 private:
  std::vector<Value> items_;
  int depth_;
  std::size_t next_ = 0;
};

class Joiner final : public Object {
 public:
  explicit Joiner(std::string separator) : separator_(std::move(separator)) {}
  std::string_view type_name() const override { return "Joiner"; }
  bool callable() const override { return true; }
  Value call(Run& run, Arguments arguments) override {
    const Bound bound("joiner", {}, arguments);
    return run.text(std::exchange(used_, true) ? separator_ : "");
  }

 private:
  std::string separator_;
  bool used_ = false;
};

Value range(Run& run, Arguments arguments) {
  if (!arguments.named.empty()) type_error("range() takes no keyword arguments");
  const Bound bound("range", {"start", "stop", "step"}, arguments, 1);
  auto out = std::make_shared<Sequence>();
  out->type = Sequence::Type::kRange;
  out->start = bound[1] ? require_integer(*bound[0]) : Int{0};
  out->stop = require_integer(bound[1] ? *bound[1] : *bound[0]);
  out->step = bound[2] ? require_integer(*bound[2]) : Int{1};
  const Int limit = Int{1} << 100;
  for (Int bounded : {out->start, out->stop, out->step}) {
    if (bounded > limit || bounded < -limit) unsupported("a range beyond 100 bits");
  }
  if (out->step == 0) value_error("range() arg 3 must not be zero");
  const Int distance = out->step > 0 ? out->stop - out->start : out->start - out->stop;
  const Int by = out->step > 0 ? out->step : -out->step;
  const Int size = distance <= 0 ? 0 : (distance - 1) / by + 1;
  if (size > kMaxRange) runtime_error("Range too big: more than 100000 items");
  run.spend(static_cast<std::size_t>(size) * sizeof(Value));
  for (Int i = 0; i < size; ++i) out->items.push_back(out->start + i * out->step);
  return SequencePtr(std::move(out));
}

// Arguments of dict() and namespace(): a mapping or pairs, then names.
std::vector<std::pair<Value, Value>> entries_of(Run& run, const Arguments& arguments) {
  std::vector<std::pair<Value, Value>> entries;
  if (arguments.positional.size() > 1) type_error("dict expected at most 1 argument");
  if (!arguments.positional.empty()) {
    const Value& first = arguments.positional.front();
    if (const Dict* dict = dict_of(first)) {
      entries = dict->entries;
    } else {
      Cursor cursor(run, first);
      for (Value item; cursor.next(item);) {
        std::vector<Value> pair = collect(run, item);
        if (pair.size() != 2) value_error("a dict is made of pairs");
        entries.emplace_back(std::move(pair[0]), std::move(pair[1]));
      }
    }
  }
  for (const auto& [name, value] : arguments.named) entries.emplace_back(run.text(name), value);
  return entries;
}

Value make_dict(Run& run, Arguments arguments) { return run.dict(entries_of(run, arguments)); }

Value make_namespace(Run& run, Arguments arguments) {
  const Value attributes = make_dict(run, std::move(arguments));
  auto made = run.make_namespace();
  for (const auto& [key, value] : dict_of(attributes)->entries) {
    const Text* name = text_of(key);
    if (!name) unsupported("a namespace attribute whose name is no string");
    made->set(name->view(), value);
  }
  return ObjectPtr(std::move(made));
}

Value make_cycler(Run&, Arguments arguments) {
  if (!arguments.named.empty()) type_error("cycler() takes no keyword arguments");
  if (arguments.positional.empty()) runtime_error("at least one item has to be provided");
  return std::make_shared<Cycler>(std::move(arguments.positional));
}

Value make_joiner(Run& run, Arguments arguments) {
  const Bound bound("joiner", {"sep"}, arguments);
  return std::make_shared<Joiner>(bound[0] ? to_text(run, *bound[0]) : ", ");
}

Value raise_exception(Run& run, Arguments arguments) {
  const Bound bound("raise_exception", {"message"}, arguments, 1);
  runtime_error(to_text(run, *bound[0]));
}

// `format` with what Python's datetime of no time zone replaces by itself: %z and %Z are empty, %f
// is the microseconds.
std::string without_zone(std::string_view format, std::string_view microseconds) {
  std::string out;
  for (std::size_t i = 0; i < format.size(); ++i) {
    const char next = format[i] == '%' && i + 1 < format.size() ? format[i + 1] : '\0';
    if (next == '\0') {
      out += format[i];
      continue;
    }
    ++i;
    if (next == 'f') {
      out += microseconds;
    } else if (next != 'z' && next != 'Z') {
      out += '%';
      out += next;
    }
  }
  return out;
}

Value strftime_now(Run& run, Arguments arguments) {
  const Bound bound("strftime_now", {"format"}, arguments, 1);
  const Text* format = text_of(*bound[0]);
  if (!format || format->view().size() > 1000)
    type_error("strftime_now() needs a string of at most 1000 bytes");
  std::timespec now{};
  std::timespec_get(&now, TIME_UTC);
  std::tm local{};
  localtime_r(&now.tv_sec, &local);
  const std::string digits = std::to_string(1'000'000 + now.tv_nsec / 1000);
  // A first byte of our own tells an empty result from one that does not fit.
  const std::string marked =
      words({".", without_zone(format->view(), std::string_view(digits).substr(1))});
  std::array<char, 32768> buffer;
  const std::size_t size = std::strftime(buffer.data(), buffer.size(), marked.c_str(), &local);
  if (size == 0) runtime_error("strftime_now(): the result is too long");
  return run.text(std::string(buffer.data() + 1, size - 1));
}

Value lipsum(Run&, Arguments) { unsupported("the function 'lipsum'"); }

struct Entry {
  std::string_view name;
  Value (*body)(Run&, Arguments);
};

constexpr std::array<Entry, 8> kGlobals = {{{"range", range},
                                            {"dict", make_dict},
                                            {"namespace", make_namespace},
                                            {"cycler", make_cycler},
                                            {"joiner", make_joiner},
                                            {"raise_exception", raise_exception},
                                            {"strftime_now", strftime_now},
                                            {"lipsum", lipsum}}};

}  // namespace

Value global(std::string_view name) {
  for (const Entry& entry : kGlobals) {
    if (entry.name == name) return std::make_shared<Function>("function", entry.body);
  }
  return Unset{};
}

}  // namespace moiety::jinja
