// Statements.

#include "model/jinja_interpreter.h"

#include <utility>

#include "model/jinja_filters.h"
#include "model/jinja_loop.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

class Macro final : public Object {
 public:
  Macro(Interpreter& interpreter,
        Run& run,
        std::shared_ptr<const MacroBody> body,
        const FramePtr& definition)
      : interpreter_(interpreter), run_(run), body_(std::move(body)), definition_(definition) {}
  std::string_view type_name() const override { return "Macro"; }
  bool callable() const override { return true; }
  std::string repr(Run&) const override {
    return body_->name.empty() ? "<Macro anonymous>" : words({"<Macro ", quoted(body_->name), ">"});
  }
  std::optional<Value> attribute(Run& run, std::string_view name) override {
    if (name == "name") return body_->name.empty() ? Value(None{}) : run.text(body_->name);
    if (name == "catch_kwargs") return body_->uses_kwargs;
    if (name == "catch_varargs") return body_->uses_varargs;
    if (name == "caller") return body_->uses_caller;
    if (name != "arguments") return std::nullopt;
    std::vector<Value> names;
    for (const NameExpr& parameter : body_->parameters) names.push_back(run.text(parameter.name));
    return run.tuple(std::move(names));
  }
  Value call(Run&, Arguments arguments) override {
    const FramePtr definition = definition_.lock();
    if (!definition)
      runtime_error(
          words({"the macro '", body_->name, "' is called outside of the block that defines it"}));
    const int line = run_.line;
    Value result = interpreter_.call_macro(*body_, *definition, std::move(arguments));
    run_.line = line;
    return result;
  }

 private:
  Interpreter& interpreter_;
  Run& run_;
  std::shared_ptr<const MacroBody> body_;
  std::weak_ptr<Frame> definition_;
};

}  // namespace

std::string Interpreter::render(const Template& parsed) {
  std::string out;
  out_ = &out;
  const FramePtr root = enter(parsed.scope, nullptr);
  execute(parsed.body, root);
  return out;
}

Value& Interpreter::slot(const Reference& reference, Frame& frame) {
  Frame* at = &frame;
  for (int hops = reference.hops; hops > 0; --hops) at = at->parent;
  return at->slots[static_cast<std::size_t>(reference.slot)];
}

Value Interpreter::resolve(const std::string& name) const {
  const Value* given = variables_.find(run_, name);
  return given ? *given : global(name);
}

FramePtr Interpreter::enter(const Scope& scope, Frame* parent) {
  run_.spend(sizeof(Frame) + scope.variables.size() * sizeof(Value));
  auto frame = std::make_shared<Frame>(Frame{scope, parent});
  frame->slots.resize(scope.variables.size());
  load(*frame);
  return frame;
}

void Interpreter::load(Frame& frame) {
  for (std::size_t i = 0; i < frame.slots.size(); ++i) {
    const Variable& variable = frame.scope.variables[i];
    if (variable.load == Load::kResolve) {
      frame.slots[i] = resolve(variable.name);
    } else if (variable.load == Load::kAlias) {
      Frame& parent = *frame.parent;
      frame.slots[i] = slot(variable.outer, parent);
    } else {
      frame.slots[i] = Unset{};
    }
  }
}

void Interpreter::print(std::string_view text) {
  if (out_->size() + text.size() > run_.limits().text_bytes) {
    throw Failure{Failure::Kind::kLimit,
                  words({"the text is longer than ", std::to_string(run_.limits().text_bytes >> 20),
                         " MiB"})};
  }
  out_->append(text);
}

void Interpreter::print(const Value& value) {
  if (const Text* text = text_of(value)) return print(text->view());
  print(to_text(run_, value));
}

Interpreter::Flow Interpreter::captured(const Body& body, const FramePtr& frame, std::string& out) {
  std::string* const outside = std::exchange(out_, &out);
  struct Restore {
    std::string*& where;
    std::string* what;
    ~Restore() { where = what; }
  } const restore{out_, outside};
  return execute(body, frame);
}

void Interpreter::require_namespaces(const Target& target, Frame& frame) {
  if (const auto* space = std::get_if<NamespaceTarget>(&target.node)) {
    if (!object_of<Namespace>(slot(space->space.variable, frame))) {
      runtime_error(
          words({"cannot assign attribute on non-namespace object '", space->space.name, "'"}));
    }
  } else if (const auto* targets = std::get_if<std::vector<Target>>(&target.node)) {
    for (const Target& each : *targets) require_namespaces(each, frame);
  }
}

void Interpreter::assign(const Target& target, Frame& frame, const Value& value) {
  run_.step();
  if (const auto* name = std::get_if<NameExpr>(&target.node)) {
    slot(name->variable, frame) = value;
  } else if (const auto* space = std::get_if<NamespaceTarget>(&target.node)) {
    auto* names = object_of<Namespace>(slot(space->space.variable, frame));
    if (!names)
      runtime_error(
          words({"cannot assign attribute on non-namespace object '", space->space.name, "'"}));
    names->set(space->attribute, value);
  } else {
    const auto& targets = std::get<std::vector<Target>>(target.node);
    Cursor cursor(run_, value);
    std::vector<Value> items;
    Value item;
    while (items.size() <= targets.size() && cursor.next(item)) items.push_back(std::move(item));
    if (items.size() != targets.size()) {
      value_error(std::string(items.size() > targets.size() ? "too many" : "not enough") +
                  " values to unpack (" + std::to_string(targets.size()) + " expected)");
    }
    for (std::size_t i = 0; i < targets.size(); ++i) assign(targets[i], frame, items[i]);
  }
}

// One statement of each kind.
struct Execute {
  using Flow = Interpreter::Flow;
  Interpreter& on;
  const FramePtr& frame;

  Flow operator()(const TextStmt& s) {
    on.print(std::string_view(s.text));
    return Flow::kNext;
  }
  Flow operator()(const PrintStmt& s) {
    on.print(on.evaluate(*s.value, *frame));
    return Flow::kNext;
  }
  Flow operator()(const IfStmt& s) {
    for (const auto& [condition, body] : s.branches) {
      if (truthy(on.run_, on.evaluate(*condition, *frame))) return on.execute(body, frame);
    }
    return on.execute(s.otherwise, frame);
  }
  Flow operator()(const ForStmt& s) { return on.for_loop(s, frame); }
  Flow operator()(const SetStmt& s) {
    on.require_namespaces(s.target, *frame);
    on.assign(s.target, *frame, on.evaluate(*s.value, *frame));
    return Flow::kNext;
  }
  Flow operator()(const SetBlockStmt& s) {
    const FramePtr inner = on.enter(s.scope, frame.get());
    std::string text;
    const Flow flow = on.captured(s.body, inner, text);
    if (flow != Flow::kNext) return flow;
    Value value = on.run_.text(std::move(text));
    if (s.filter) value = on.filter_block(*s.filter, *inner, std::move(value));
    on.assign(s.target, *frame, value);
    return Flow::kNext;
  }
  Flow operator()(const FilterStmt& s) {
    const FramePtr inner = on.enter(s.scope, frame.get());
    std::string text;
    const Flow flow = on.captured(s.body, inner, text);
    if (flow == Flow::kNext)
      on.print(on.filter_block(*s.filter, *inner, on.run_.text(std::move(text))));
    return flow;
  }
  Flow operator()(const MacroStmt& s) {
    Interpreter::slot(s.target.variable, *frame) =
        std::make_shared<Macro>(on, on.run_, s.macro, frame);
    return Flow::kNext;
  }
  Flow operator()(const CallStmt& s) {
    on.print(on.call_block(s, frame));
    return Flow::kNext;
  }
  Flow operator()(const GenerationStmt& s) {
    return on.execute(s.body, on.enter(s.scope, frame.get()));
  }
  Flow operator()(const WithStmt& s) {
    const FramePtr inner = on.enter(s.scope, frame.get());
    for (std::size_t i = 0; i < s.targets.size(); ++i) {
      on.assign(s.targets[i], *inner, on.evaluate(*s.values[i], *frame));
    }
    return on.execute(s.body, inner);
  }
  Flow operator()(const BreakStmt&) { return Flow::kBreak; }
  Flow operator()(const ContinueStmt&) { return Flow::kContinue; }
};

Interpreter::Flow Interpreter::execute(const Body& body, const FramePtr& frame) {
  const Nested nested(run_);
  for (const Stmt& statement : body) {
    run_.step();
    run_.line = statement.line;
    const Flow flow = std::visit(Execute{*this, frame}, statement.node);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::for_loop(const ForStmt& loop, const FramePtr& frame) {
  const FramePtr inner = enter(loop.body_scope, frame.get());
  const FramePtr test = loop.test ? enter(loop.test_scope, frame.get()) : nullptr;
  LoopContext::Condition wanted;
  if (test) {
    wanted = [&](const Value& item) {
      assign(loop.test_target, *test, item);
      return truthy(run_, evaluate(*loop.test, *test));
    };
  }
  const auto context =
      std::make_shared<LoopContext>(run_, evaluate(*loop.iterable, *frame), std::move(wanted));
  const LoopContext::Ended ended(*context);
  bool completed = false;  // Jinja runs `else` unless some round came to the end of the body
  for (Value item; context->advance(item);) {
    load(*inner);
    slot(loop.loop, *inner) = ObjectPtr(context);
    assign(loop.target, *inner, item);
    const Flow flow = execute(loop.body, inner);
    if (flow == Flow::kBreak) break;
    completed |= flow == Flow::kNext;
  }
  if (completed || loop.otherwise.empty()) return Flow::kNext;
  return execute(loop.otherwise, enter(loop.otherwise_scope, frame.get()));
}

Value Interpreter::call_block(const CallStmt& statement, const FramePtr& frame) {
  const auto& call_expression = std::get<CallExpr>(statement.call->node);
  const Value callee = evaluate(*call_expression.callee, *frame);
  Arguments given = arguments(call_expression.arguments, *frame);
  for (const auto& [name, value] : given.named) {
    if (name == "caller") type_error("a call block gives 'caller' itself");
  }
  given.named.emplace_back("caller", std::make_shared<Macro>(*this, run_, statement.macro, frame));
  return call(run_, callee, std::move(given));
}

Value Interpreter::call_macro(const MacroBody& macro, Frame& definition, Arguments arguments) {
  const Nested nested(run_);
  const std::string name = macro.name.empty() ? "None" : quoted(macro.name);
  const std::size_t count = macro.parameters.size();
  const FramePtr frame = enter(macro.scope, &definition);
  auto& named = arguments.named;
  const auto take = [&](const std::string& key, Value& value) {
    for (auto it = named.begin(); it != named.end(); ++it) {
      if (it->first != key) continue;
      value = std::move(it->second);
      named.erase(it);
      return;
    }
  };
  const std::size_t positional = std::min(arguments.positional.size(), count);
  for (std::size_t i = 0; i < count; ++i) {
    const NameExpr& parameter = macro.parameters[i];
    Value& value = slot(parameter.variable, *frame);
    if (i < positional) {
      value = arguments.positional[i];
    } else {
      take(parameter.name, value);
    }
  }
  if (macro.uses_caller) {
    Value& caller = slot(macro.caller.variable, *frame);
    take("caller", caller);
    if (is<Unset>(caller) || is<None>(caller)) caller = undefined("No caller defined");
  }
  if (macro.uses_kwargs) {
    std::vector<std::pair<Value, Value>> entries;
    for (auto& [key, value] : named) entries.emplace_back(run_.text(key), std::move(value));
    slot(macro.kwargs.variable, *frame) = run_.dict(std::move(entries));
  } else if (!named.empty()) {
    type_error(words({"macro ", name, " takes no keyword argument ", quoted(named.front().first)}));
  }
  if (macro.uses_varargs) {
    std::vector<Value> rest(arguments.positional.begin() + static_cast<std::ptrdiff_t>(positional),
                            arguments.positional.end());
    slot(macro.varargs.variable, *frame) = run_.tuple(std::move(rest));
  } else if (arguments.positional.size() > count) {
    type_error(
        words({"macro ", name, " takes not more than ", std::to_string(count), " argument(s)"}));
  }
  const std::size_t without_default = count - macro.defaults.size();
  for (std::size_t i = 0; i < count; ++i) {
    Value& value = slot(macro.parameters[i].variable, *frame);
    if (!is<Unset>(value)) continue;
    value = i < without_default ? undefined(words({"parameter ", quoted(macro.parameters[i].name),
                                                   " was not provided"}))
                                : evaluate(*macro.defaults[i - without_default], *frame);
  }
  std::string text;
  captured(macro.body, frame, text);
  return run_.text(std::move(text));
}

}  // namespace moiety::jinja
