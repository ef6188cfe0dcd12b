// Expressions of the parser.

#include <algorithm>

#include "model/jinja_parser.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

// Chains such as a + b + c nest without brackets; their trees are walked recursively.
constexpr int kMaxExpressionDepth = 300;

int depth_of_children(const Expr& expression);

struct ChildDepth {
  int deepest = 0;
  void see(const ExprPtr& child) {
    if (child) deepest = std::max(deepest, child->depth);
  }
  void see(const std::vector<ExprPtr>& children) {
    for (const ExprPtr& child : children) see(child);
  }
  void see(const CallArguments& arguments) {
    see(arguments.positional);
    for (const auto& [name, value] : arguments.named) see(value);
    see(arguments.star);
    see(arguments.double_star);
  }
  void operator()(const NameExpr&) {}
  void operator()(const ConstantExpr&) {}
  void operator()(const ListExpr& e) { see(e.items); }
  void operator()(const DictExpr& e) {
    for (const auto& [key, value] : e.entries) see(key), see(value);
  }
  void operator()(const UnaryExpr& e) { see(e.operand); }
  void operator()(const BinaryExpr& e) { see(e.left), see(e.right); }
  void operator()(const LogicalExpr& e) { see(e.left), see(e.right); }
  void operator()(const ConcatExpr& e) { see(e.parts); }
  void operator()(const CompareExpr& e) {
    see(e.first);
    for (const auto& [op, operand] : e.rest) see(operand);
  }
  void operator()(const ConditionalExpr& e) { see(e.condition), see(e.then), see(e.otherwise); }
  void operator()(const AttributeExpr& e) { see(e.object); }
  void operator()(const ItemExpr& e) { see(e.object), see(e.key); }
  void operator()(const SliceExpr& e) { see(e.object), see(e.start), see(e.stop), see(e.step); }
  void operator()(const CallExpr& e) { see(e.callee), see(e.arguments); }
  void operator()(const FilterExpr& e) { see(e.input), see(e.arguments); }
  void operator()(const TestExpr& e) { see(e.input), see(e.arguments); }
};

int depth_of_children(const Expr& expression) {
  ChildDepth depth;
  std::visit(depth, expression.node);
  return depth.deepest;
}

}  // namespace

ExprPtr Parser::make(int line, decltype(Expr::node) node) {
  auto made = std::make_unique<Expr>();
  made->line = line;
  made->node = std::move(node);
  made->depth = depth_of_children(*made) + 1;
  if (made->depth > kMaxExpressionDepth) fail("an expression of more than 300 levels");
  return made;
}

ExprPtr Parser::expression(bool with_conditional) {
  const Deeper deeper(*this);
  return with_conditional ? conditional() : or_expression();
}

ExprPtr Parser::conditional() {
  const int line = current().line;
  const std::size_t unknown_before = unknown_.size();
  ExprPtr value = or_expression();
  while (skip_name("if")) {
    ExprPtr condition = or_expression();
    ExprPtr otherwise;
    if (skip_name("else")) {
      const Deeper deeper(*this);
      otherwise = conditional();
    }
    unknown_.resize(unknown_before);
    value =
        make(line, ConditionalExpr{std::move(condition), std::move(value), std::move(otherwise)});
  }
  return value;
}

ExprPtr Parser::or_expression() {
  const int line = current().line;
  ExprPtr left = and_expression();
  while (skip_name("or")) left = make(line, LogicalExpr{false, std::move(left), and_expression()});
  return left;
}

ExprPtr Parser::and_expression() {
  const int line = current().line;
  ExprPtr left = not_expression();
  while (skip_name("and")) left = make(line, LogicalExpr{true, std::move(left), not_expression()});
  return left;
}

ExprPtr Parser::not_expression() {
  const int line = current().line;
  if (!skip_name("not")) return comparison();
  const Deeper deeper(*this);
  return make(line, UnaryExpr{UnaryExpr::Operator::kNot, not_expression()});
}

ExprPtr Parser::comparison() {
  const int line = current().line;
  ExprPtr first = sum();
  std::vector<std::pair<Comparison, ExprPtr>> rest;
  constexpr std::pair<std::string_view, Comparison> kOperators[] = {
      {"==", Comparison::kEqual},  {"!=", Comparison::kNotEqual},
      {"<", Comparison::kLess},    {"<=", Comparison::kLessEqual},
      {">", Comparison::kGreater}, {">=", Comparison::kGreaterEqual}};
  for (;;) {
    const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                     [this](const auto& each) { return at_operator(each.first); });
    Comparison op = Comparison::kIn;
    if (found != std::end(kOperators)) {
      next();
      op = found->second;
    } else if (at_name("not") && look_ahead().type == TokenType::kName &&
               look_ahead().text == "in") {
      next();
      next();
      op = Comparison::kNotIn;
    } else if (!skip_name("in")) {
      break;
    }
    rest.emplace_back(op, sum());
  }
  if (rest.empty()) return first;
  return make(line, CompareExpr{std::move(first), std::move(rest)});
}

ExprPtr Parser::sum() {
  const int line = current().line;
  ExprPtr left = concatenation();
  for (;;) {
    const bool plus = at_operator("+");
    if (!plus && !at_operator("-")) return left;
    next();
    const BinaryOperator op = plus ? BinaryOperator::kAdd : BinaryOperator::kSubtract;
    left = make(line, BinaryExpr{op, std::move(left), concatenation()});
  }
}

ExprPtr Parser::concatenation() {
  const int line = current().line;
  std::vector<ExprPtr> parts;
  parts.push_back(product());
  while (skip_operator("~")) parts.push_back(product());
  if (parts.size() == 1) return std::move(parts.front());
  return make(line, ConcatExpr{std::move(parts)});
}

ExprPtr Parser::product() {
  const int line = current().line;
  ExprPtr left = power();
  constexpr std::pair<std::string_view, BinaryOperator> kOperators[] = {
      {"*", BinaryOperator::kMultiply},
      {"/", BinaryOperator::kDivide},
      {"//", BinaryOperator::kFloorDivide},
      {"%", BinaryOperator::kModulo}};
  for (;;) {
    const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                     [this](const auto& each) { return at_operator(each.first); });
    if (found == std::end(kOperators)) return left;
    next();
    left = make(line, BinaryExpr{found->second, std::move(left), power()});
  }
}

ExprPtr Parser::power() {
  const int line = current().line;
  ExprPtr left = unary(true);
  while (skip_operator("**"))
    left = make(line, BinaryExpr{BinaryOperator::kPower, std::move(left), unary(true)});
  return left;
}

ExprPtr Parser::unary(bool with_filter) {
  const Deeper deeper(*this);
  const int line = current().line;
  ExprPtr value;
  if (skip_operator("-")) {
    value = make(line, UnaryExpr{UnaryExpr::Operator::kMinus, unary(false)});
  } else if (skip_operator("+")) {
    value = make(line, UnaryExpr{UnaryExpr::Operator::kPlus, unary(false)});
  } else {
    value = primary();
  }
  value = postfix(std::move(value));
  return with_filter ? filters_and_tests(std::move(value)) : std::move(value);
}

ExprPtr Parser::primary() {
  const Token& token = current();
  const int line = token.line;
  Run run;  // constants are part of the template, not of a rendering
  switch (token.type) {
    case TokenType::kName: {
      next();
      const std::string& name = token.text;
      if (name == "true" || name == "True") return make(line, ConstantExpr{true});
      if (name == "false" || name == "False") return make(line, ConstantExpr{false});
      if (name == "none" || name == "None") return make(line, ConstantExpr{None{}});
      if (name == "self" || name == "super") unsupported(words({"the variable '", name, "'"}));
      for (MacroBody* macro : macros_) {
        macro->uses_caller |= name == "caller";
        macro->uses_kwargs |= name == "kwargs";
        macro->uses_varargs |= name == "varargs";
      }
      return make(line, NameExpr{name, {}});
    }
    case TokenType::kString: {
      std::string text = next().text;
      while (at(TokenType::kString)) text += next().text;
      return make(line, ConstantExpr{run.text(std::move(text))});
    }
    case TokenType::kInteger:
      return make(line, ConstantExpr{next().integer});
    case TokenType::kFloat:
      return make(line, ConstantExpr{next().real});
    default:
      break;
  }
  if (skip_operator("(")) {
    ExprPtr value = tuple(false, true, true);
    expect_operator(")");
    return value;
  }
  if (at_operator("[")) return list_literal();
  if (at_operator("{")) return dict_literal();
  unexpected();
}

// One expression, or several with commas between them. `simplified`: names and literals only, for
// targets.
ExprPtr Parser::tuple(bool simplified, bool with_conditional, bool in_parentheses) {
  const Deeper deeper(*this);
  const int line = current().line;
  std::vector<ExprPtr> items;
  bool is_tuple = false;
  for (;;) {
    if (!items.empty()) expect_operator(",");
    if (at(TokenType::kVariableEnd) || at(TokenType::kBlockEnd) || at_operator(")")) break;
    if (simplified) {
      items.push_back(primary());
      const bool is_name = std::holds_alternative<NameExpr>(items.back()->node);
      if (is_name && at_operator(".")) {
        next();
        items.back() = make(line, AttributeExpr{std::move(items.back()), identifier()});
      }
    } else {
      items.push_back(expression(with_conditional));
    }
    if (!at_operator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !items.empty()) return std::move(items.front());
  if (!is_tuple && !in_parentheses) unexpected();
  return make(line, ListExpr{std::move(items), true});
}

ExprPtr Parser::list_literal() {
  const int line = next().line;
  std::vector<ExprPtr> items;
  while (!at_operator("]")) {
    if (!items.empty()) expect_operator(",");
    if (at_operator("]")) break;
    items.push_back(expression());
  }
  next();
  return make(line, ListExpr{std::move(items), false});
}

ExprPtr Parser::dict_literal() {
  const int line = next().line;
  DictExpr dict;
  while (!at_operator("}")) {
    if (!dict.entries.empty()) expect_operator(",");
    if (at_operator("}")) break;
    ExprPtr key = expression();
    expect_operator(":");
    ExprPtr value = expression();
    dict.entries.emplace_back(std::move(key), std::move(value));
  }
  next();
  return make(line, std::move(dict));
}

ExprPtr Parser::postfix(ExprPtr value) {
  for (;;) {
    if (at_operator(".") || at_operator("[")) {
      value = subscript(std::move(value));
    } else if (at_operator("(")) {
      value = call_of(std::move(value));
    } else {
      return value;
    }
  }
}

ExprPtr Parser::filters_and_tests(ExprPtr value) {
  for (;;) {
    if (at_operator("|")) {
      value = filter_chain(std::move(value), false);
    } else if (at_name("is")) {
      value = test(std::move(value));
    } else if (at_operator("(")) {
      value = call_of(std::move(value));
    } else {
      return value;
    }
  }
}

std::string Parser::dotted_name() {
  std::string name = identifier();
  while (skip_operator(".")) name += words({".", identifier()});
  return name;
}

ExprPtr Parser::filter_chain(ExprPtr input, bool first_without_pipe) {
  if (first_without_pipe) input = filter(std::move(input));
  while (skip_operator("|")) input = filter(std::move(input));
  return input;
}

ExprPtr Parser::filter(ExprPtr input) {
  const int line = current().line;
  const std::string name = dotted_name();
  FilterExpr filter;
  filter.filter = find_filter(name);
  if (!filter.filter && is_jinja_filter(name)) unsupported(words({"the filter '", name, "'"}));
  if (!filter.filter) unknown_.emplace_back(line, words({"unknown filter '", name, "'"}));
  filter.name = name;
  filter.input = std::move(input);
  if (at_operator("(")) filter.arguments = call_arguments();
  return make(line, std::move(filter));
}

ExprPtr Parser::test(ExprPtr input) {
  const int line = next().line;  // is
  const bool negated = skip_name("not");
  const std::string name = dotted_name();
  TestExpr test;
  test.test = find_test(name);
  if (!test.test) unknown_.emplace_back(line, words({"unknown test '", name, "'"}));
  test.name = name;
  test.input = std::move(input);
  const bool bare_argument =
      at(TokenType::kString) || at(TokenType::kInteger) || at(TokenType::kFloat) ||
      at_operator("[") || at_operator("{") ||
      (at(TokenType::kName) && !at_name("else") && !at_name("or") && !at_name("and"));
  if (at_operator("(")) {
    test.arguments = call_arguments();
  } else if (bare_argument) {
    if (at_name("is")) fail("tests cannot be chained with 'is'");
    test.arguments.positional.push_back(postfix(primary()));
  }
  ExprPtr result = make(line, std::move(test));
  if (!negated) return result;
  return make(line, UnaryExpr{UnaryExpr::Operator::kNot, std::move(result)});
}

ExprPtr Parser::subscript(ExprPtr object) {
  const int line = current().line;
  if (skip_operator(".")) {
    const Token& token = next();
    if (token.type == TokenType::kName)
      return make(line, AttributeExpr{std::move(object), token.text});
    if (token.type != TokenType::kInteger) fail("expected a name or a number after '.'");
    ExprPtr key = make(line, ConstantExpr{token.integer});
    return make(line, ItemExpr{std::move(object), std::move(key)});
  }
  next();  // [
  std::vector<ExprPtr> keys;
  bool is_slice = false;
  while (!at_operator("]")) {
    if (!keys.empty()) expect_operator(",");
    keys.push_back(subscribed(object, is_slice));
    if (is_slice) {
      if (keys.size() > 1 || !at_operator("]")) unsupported("a slice among several subscripts");
      next();
      return std::move(keys.front());
    }
  }
  next();
  ExprPtr key =
      keys.size() == 1 ? std::move(keys.front()) : make(line, ListExpr{std::move(keys), true});
  return make(line, ItemExpr{std::move(object), std::move(key)});
}

// What stands between brackets. A slice takes `object` into itself.
ExprPtr Parser::subscribed(ExprPtr& object, bool& is_slice) {
  const int line = current().line;
  SliceExpr slice;
  if (!at_operator(":")) {
    slice.start = expression();
    if (!at_operator(":")) return std::move(slice.start);
  }
  is_slice = true;
  next();
  const auto ends = [this] { return at_operator("]") || at_operator(","); };
  if (!at_operator(":") && !ends()) slice.stop = expression();
  if (skip_operator(":") && !ends()) slice.step = expression();
  slice.object = std::move(object);
  return make(line, std::move(slice));
}

ExprPtr Parser::call_of(ExprPtr callee) {
  const int line = current().line;
  CallArguments arguments = call_arguments();
  return make(line, CallExpr{std::move(callee), std::move(arguments)});
}

CallArguments Parser::call_arguments() {
  CallArguments arguments;
  const auto ensure = [this](bool holds) {
    if (!holds) fail("arguments of a call in a wrong order");
  };
  expect_operator("(");
  for (bool first = true; !at_operator(")"); first = false) {
    if (!first) expect_operator(",");
    if (at_operator(")")) break;
    if (skip_operator("*")) {
      ensure(!arguments.star && !arguments.double_star);
      arguments.star = expression();
    } else if (skip_operator("**")) {
      ensure(!arguments.double_star);
      arguments.double_star = expression();
    } else if (at(TokenType::kName) && look_ahead().type == TokenType::kOperator &&
               look_ahead().text == "=") {
      ensure(!arguments.double_star);
      std::string name = next().text;
      next();
      for (const auto& [known, value] : arguments.named) {
        if (known == name) fail(words({"the argument '", name, "' is given twice"}));
      }
      ExprPtr value = expression();
      arguments.named.emplace_back(std::move(name), std::move(value));
    } else {
      ensure(!arguments.star && !arguments.double_star && arguments.named.empty());
      arguments.positional.push_back(expression());
    }
  }
  next();
  return arguments;
}

}  // namespace moiety::jinja
