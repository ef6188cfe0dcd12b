// Expressions of the interpreter.

#include <algorithm>

#include "model/jinja_interpreter.h"
#include "model/jinja_text.h"

namespace moiety::jinja {

// One expression of each kind.
struct Evaluate {
  Interpreter& on;
  Frame& frame;

  Value value_of(const ExprPtr& expression) { return on.evaluate(*expression, frame); }

  Value operator()(const NameExpr& e) {
    const Value& value = Interpreter::slot(e.variable, frame);
    return is<Unset>(value) ? undefined(words({quoted(e.name), " is undefined"})) : value;
  }
  Value operator()(const ConstantExpr& e) { return e.value; }
  Value operator()(const ListExpr& e) {
    std::vector<Value> items;
    items.reserve(e.items.size());
    for (const ExprPtr& item : e.items) items.push_back(value_of(item));
    return e.is_tuple ? on.run_.tuple(std::move(items)) : on.run_.list(std::move(items));
  }
  Value operator()(const DictExpr& e) {
    std::vector<std::pair<Value, Value>> entries;
    entries.reserve(e.entries.size());
    for (const auto& [key, value] : e.entries) {
      Value evaluated = value_of(key);
      entries.emplace_back(std::move(evaluated), value_of(value));
    }
    return on.run_.dict(std::move(entries));
  }
  Value operator()(const UnaryExpr& e) {
    const Value value = value_of(e.operand);
    if (e.op == UnaryExpr::Operator::kNot) return !truthy(on.run_, value);
    return e.op == UnaryExpr::Operator::kMinus ? negate(value) : unary_plus(value);
  }
  Value operator()(const BinaryExpr& e) {
    const Value left = value_of(e.left);
    const Value right = value_of(e.right);
    return apply(on.run_, e.op, left, right);
  }
  Value operator()(const LogicalExpr& e) {
    Value left = value_of(e.left);
    return truthy(on.run_, left) == e.is_and ? value_of(e.right) : left;
  }
  Value operator()(const ConcatExpr& e) {
    std::string out;
    for (const ExprPtr& part : e.parts) {
      const Value value = value_of(part);
      const Text* text = text_of(value);
      const std::string made = text ? "" : to_text(on.run_, value);
      const std::string_view view = text ? text->view() : made;
      on.run_.spend(view.size());
      out += view;
    }
    return on.run_.text(std::move(out));
  }
  Value operator()(const CompareExpr& e) {
    Value left = value_of(e.first);
    bool holds = true;
    for (const auto& [op, operand] : e.rest) {
      Value right = value_of(operand);
      holds = compare(on.run_, op, left, right);
      if (!holds) return false;
      left = std::move(right);
    }
    return holds;
  }
  Value operator()(const ConditionalExpr& e) {
    if (truthy(on.run_, value_of(e.condition))) return value_of(e.then);
    if (e.otherwise) return value_of(e.otherwise);
    return undefined("an inline if without else whose condition is false");
  }
  Value operator()(const AttributeExpr& e) {
    return get_attribute(on.run_, value_of(e.object), e.name);
  }
  Value operator()(const ItemExpr& e) {
    const Value object = value_of(e.object);
    return get_item(on.run_, object, value_of(e.key));
  }
  Value operator()(const SliceExpr& e) {
    const Value object = value_of(e.object);
    const auto bound = [&](const ExprPtr& each) { return each ? value_of(each) : Value(None{}); };
    const Value start = bound(e.start);
    const Value stop = bound(e.stop);
    return get_slice(on.run_, object, start, stop, bound(e.step));
  }
  Value operator()(const CallExpr& e) {
    const Value callee = value_of(e.callee);
    return call(on.run_, callee, on.arguments(e.arguments, frame));
  }
  Value operator()(const FilterExpr& e) { return on.filter(e, frame, value_of(e.input)); }
  Value operator()(const TestExpr& e) {
    const Value value = value_of(e.input);
    if (!e.test) runtime_error(words({"unknown test '", e.name, "'"}));
    return e.test(on.run_, value, on.arguments(e.arguments, frame));
  }
};

Value Interpreter::evaluate(const Expr& expression, Frame& frame) {
  const Nested nested(run_);
  run_.line = expression.line;
  return std::visit(Evaluate{*this, frame}, expression.node);
}

Arguments Interpreter::arguments(const CallArguments& arguments, Frame& frame) {
  Arguments out;
  for (const ExprPtr& value : arguments.positional)
    out.positional.push_back(evaluate(*value, frame));
  if (arguments.star) {
    for (Value& value : collect(run_, evaluate(*arguments.star, frame)))
      out.positional.push_back(std::move(value));
  }
  for (const auto& [name, value] : arguments.named)
    out.named.emplace_back(name, evaluate(*value, frame));
  if (!arguments.double_star) return out;
  const Value mapping = evaluate(*arguments.double_star, frame);
  const Dict* dict = dict_of(mapping);
  if (!dict)
    type_error(
        words({"the argument after ** must be a mapping, not ", std::string(type_name(mapping))}));
  for (const auto& [key, value] : dict->entries) {
    const Text* name = text_of(key);
    if (!name) type_error("keywords must be strings");
    const bool known = std::any_of(out.named.begin(), out.named.end(),
                                   [&](const auto& each) { return each.first == name->view(); });
    if (known)
      type_error(words({"got multiple values for keyword argument ", quoted(name->view())}));
    out.named.emplace_back(*name->bytes, value);
  }
  return out;
}

Value Interpreter::filter(const FilterExpr& filter, Frame& frame, const Value& input) {
  if (!filter.filter) runtime_error(words({"unknown filter '", filter.name, "'"}));
  return filter.filter(run_, input, arguments(filter.arguments, frame));
}

Value Interpreter::filter_block(const Expr& filter, Frame& frame, Value text) {
  const Nested nested(run_);
  const auto& last = std::get<FilterExpr>(filter.node);
  if (last.input) text = filter_block(*last.input, frame, std::move(text));
  return this->filter(last, frame, text);
}

}  // namespace moiety::jinja
