// Statements.

#include "model/jinja_parser.h"

#include <algorithm>
#include <array>

#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

// Tags that Jinja or its extensions have and chat templates have no use for.
constexpr std::array<std::string_view, 12> kRefusedTags = {
    "include", "import", "from",  "extends", "block",     "autoescape",
    "do",      "trans",  "debug", "super",   "pluralize", "required"};

std::string described(const Token& token) {
  switch (token.type) {
    case TokenType::kData:
      return "template text";
    case TokenType::kVariableBegin:
      return "'{{'";
    case TokenType::kVariableEnd:
      return "'}}'";
    case TokenType::kBlockBegin:
      return "'{%'";
    case TokenType::kBlockEnd:
      return "'%}'";
    case TokenType::kEnd:
      return "the end of the template";
    case TokenType::kString:
      return "a string";
    case TokenType::kInteger:
    case TokenType::kFloat:
      return "a number";
    default: {
      std::string out = "'";
      return out.append(token.text).append("'");
    }
  }
}

}  // namespace

const Token& Parser::next() {
  const Token& token = tokens_[position_];
  if (position_ + 1 < tokens_.size()) ++position_;
  line_ = current().line;
  return token;
}

bool Parser::at_operator(std::string_view spelling) const {
  return at(TokenType::kOperator) && current().text == spelling;
}

bool Parser::at_name(std::string_view name) const {
  return at(TokenType::kName) && current().text == name;
}

bool Parser::skip_operator(std::string_view spelling) {
  if (!at_operator(spelling)) return false;
  next();
  return true;
}

bool Parser::skip_name(std::string_view name) {
  if (!at_name(name)) return false;
  next();
  return true;
}

void Parser::fail(std::string message) { throw Failure{Failure::Kind::kOther, std::move(message)}; }

void Parser::unexpected() {
  std::string message = "unexpected ";
  fail(message += described(current()));
}

void Parser::expect(TokenType type) {
  if (!at(type)) {
    Token wanted;
    wanted.type = type;
    wanted.text = type == TokenType::kName ? "a name" : "";
    fail(words({"expected ", described(wanted), ", got ", described(current())}));
  }
  next();
}

void Parser::expect_operator(std::string_view spelling) {
  if (skip_operator(spelling)) return;
  std::string message = "expected '";
  fail(message.append(spelling).append("', got ").append(described(current())));
}

void Parser::expect_name(std::string_view name) {
  if (skip_name(name)) return;
  std::string message = "expected '";
  fail(message.append(name).append("', got ").append(described(current())));
}

std::string Parser::identifier() {
  const Token& token = current();
  expect(TokenType::kName);
  return token.text;
}

Template Parser::parse() {
  Template parsed;
  parsed.body = statements_until({});
  resolve_scopes(parsed);
  return parsed;
}

// The statements up to a tag of `ends`, which becomes the current token; to the end of the template
// without any.
Body Parser::statements_until(const std::vector<std::string_view>& ends) {
  const Deeper deeper(*this);
  Body body;
  const auto add = [&](int line, auto node) { body.push_back(Stmt{line, std::move(node)}); };
  for (;;) {
    const int line = current().line;
    line_ = line;
    if (at(TokenType::kData)) {
      add(line, TextStmt{next().text});
    } else if (at(TokenType::kVariableBegin)) {
      next();
      ExprPtr value = tuple(false, true, false);
      settle_unknown();
      expect(TokenType::kVariableEnd);
      add(line, PrintStmt{std::move(value)});
    } else if (at(TokenType::kBlockBegin)) {
      next();
      if (std::any_of(ends.begin(), ends.end(),
                      [this](std::string_view end) { return at_name(end); }))
        return body;
      if (at_name("print")) {
        for (Stmt& each : print_statement()) body.push_back(std::move(each));
      } else {
        body.push_back(statement());
      }
      settle_unknown();
      expect(TokenType::kBlockEnd);
    } else {
      if (ends.empty()) return body;
      std::string message = "the template ends where '";
      fail(message.append(ends.back()).append("' is expected"));
    }
  }
}

void Parser::settle_unknown() {
  if (!in_condition_ && !unknown_.empty()) {
    line_ = unknown_.front().first;
    fail(unknown_.front().second);
  }
  unknown_.clear();
}

// From the end of a tag to the tag that ends its block. Bodies of `if` stay in the scope around
// them; other bodies have their own.
Body Parser::block_body(const std::vector<std::string_view>& ends) {
  settle_unknown();
  const bool outside = std::exchange(in_condition_, ends.back() == "endif");
  Body body = block_body_inside(ends);
  in_condition_ = outside;
  return body;
}

Body Parser::block_body_inside(const std::vector<std::string_view>& ends) {
  skip_operator(":");
  expect(TokenType::kBlockEnd);
  return statements_until(ends);
}

Stmt Parser::statement() {
  const int line = current().line;
  if (!at(TokenType::kName)) fail(words({"a tag's name expected, got ", described(current())}));
  const std::string tag = current().text;
  if (tag == "if") return if_statement();
  if (tag == "for") return for_statement();
  if (tag == "set") return set_statement();
  if (tag == "macro") return macro_statement();
  if (tag == "call") return call_statement();
  if (tag == "filter") return filter_statement();
  if (tag == "with") return with_statement();
  if (tag == "generation") {
    next();
    GenerationStmt generation;
    const int loops = std::exchange(loops_, 0);
    generation.body = block_body({"endgeneration"});
    loops_ = loops;
    next();
    return {line, std::move(generation)};
  }
  if (tag == "break" || tag == "continue") {
    if (loops_ == 0) fail(words({"'", tag, "' outside of a loop"}));
    next();
    if (tag == "break") return {line, BreakStmt{}};
    return {line, ContinueStmt{}};
  }
  if (std::find(kRefusedTags.begin(), kRefusedTags.end(), tag) != kRefusedTags.end()) {
    unsupported(words({"the tag '", tag, "'"}));
  }
  fail(words({"unknown tag '", tag, "'"}));
}

Stmt Parser::if_statement() {
  const int line = next().line;
  IfStmt result;
  const bool outside = std::exchange(in_condition_, true);
  for (;;) {
    ExprPtr condition = tuple(false, false, false);
    Body body = block_body({"elif", "else", "endif"});
    result.branches.emplace_back(std::move(condition), std::move(body));
    if (skip_name("elif")) continue;
    if (skip_name("else")) result.otherwise = block_body({"endif"});
    next();  // endif
    in_condition_ = outside;
    return {line, std::move(result)};
  }
}

Stmt Parser::for_statement() {
  const int line = next().line;
  ForStmt loop;
  ++for_tags_;
  const std::size_t target_at = position_;
  loop.target = assign_target(false);
  const std::size_t after_target = position_;
  position_ = target_at;
  loop.test_target = assign_target(false);
  position_ = after_target;
  expect_name("in");
  loop.iterable = tuple(false, false, false);
  if (skip_name("if")) loop.test = expression();
  if (at_name("recursive")) unsupported("a recursive loop");
  ++loops_;
  loop.body = block_body({"endfor", "else"});
  --loops_;
  if (next().text == "else") {
    loop.otherwise = block_body({"endfor"});
    next();
  }
  --for_tags_;
  return {line, std::move(loop)};
}

Stmt Parser::set_statement() {
  const int line = next().line;
  Target target = assign_target(true);
  if (skip_operator("=")) return {line, SetStmt{std::move(target), tuple(false, true, false)}};
  SetBlockStmt block;
  block.target = std::move(target);
  if (at_operator("|")) block.filter = filter_chain(nullptr, false);
  block.body = block_body({"endset"});
  next();
  return {line, std::move(block)};
}

void Parser::signature(MacroBody& macro) {
  expect_operator("(");
  while (!at_operator(")")) {
    if (!macro.parameters.empty()) expect_operator(",");
    macro.parameters.push_back(assigned_name());
    const std::string& name = macro.parameters.back().name;
    for (std::size_t i = 0; i + 1 < macro.parameters.size(); ++i) {
      if (macro.parameters[i].name == name) fail(words({"two parameters are called '", name, "'"}));
    }
    if (skip_operator("=")) {
      macro.defaults.push_back(expression());
    } else if (!macro.defaults.empty()) {
      fail("a parameter without default follows one with");
    }
  }
  next();
}

void Parser::macro_body(MacroBody& macro, std::string_view end) {
  const int loops = std::exchange(loops_, 0);
  macros_.push_back(&macro);
  macro.body = block_body({end});
  macros_.pop_back();
  loops_ = loops;
  next();
  const auto parameter = [&](std::string_view name) {
    return std::find_if(macro.parameters.begin(), macro.parameters.end(),
                        [&](const NameExpr& each) { return each.name == name; });
  };
  const auto caller = parameter("caller");
  if (macro.uses_caller && caller != macro.parameters.end()) {
    const auto without_default = macro.parameters.size() - macro.defaults.size();
    if (static_cast<std::size_t>(caller - macro.parameters.begin()) < without_default) {
      fail("the parameter 'caller' must be omitted or be given a default");
    }
    macro.uses_caller = false;
  }
  if (parameter("kwargs") != macro.parameters.end()) macro.uses_kwargs = false;
  if (parameter("varargs") != macro.parameters.end()) macro.uses_varargs = false;
  macro.caller.name = "caller";
  macro.kwargs.name = "kwargs";
  macro.varargs.name = "varargs";
}

Stmt Parser::macro_statement() {
  const int line = next().line;
  MacroStmt statement;
  statement.target = assigned_name();
  statement.macro = std::make_shared<MacroBody>();
  statement.macro->name = statement.target.name;
  signature(*statement.macro);
  macro_body(*statement.macro, "endmacro");
  return {line, std::move(statement)};
}

Stmt Parser::call_statement() {
  const int line = next().line;
  CallStmt statement;
  statement.macro = std::make_shared<MacroBody>();
  if (at_operator("(")) signature(*statement.macro);
  statement.call = expression();
  if (!std::holds_alternative<CallExpr>(statement.call->node)) fail("expected a call");
  macro_body(*statement.macro, "endcall");
  return {line, std::move(statement)};
}

Stmt Parser::filter_statement() {
  const int line = next().line;
  FilterStmt statement;
  statement.filter = filter_chain(nullptr, true);
  statement.body = block_body({"endfilter"});
  next();
  return {line, std::move(statement)};
}

Stmt Parser::with_statement() {
  const int line = next().line;
  WithStmt statement;
  while (!at(TokenType::kBlockEnd)) {
    if (!statement.targets.empty()) expect_operator(",");
    statement.targets.push_back(assign_target(false));
    expect_operator("=");
    statement.values.push_back(expression());
  }
  statement.body = block_body({"endwith"});
  next();
  return {line, std::move(statement)};
}

Body Parser::print_statement() {
  const int line = next().line;
  Body body;
  while (!at(TokenType::kBlockEnd)) {
    if (!body.empty()) expect_operator(",");
    body.push_back(Stmt{line, PrintStmt{expression()}});
  }
  return body;
}

NameExpr Parser::assigned_name() {
  const std::string name = identifier();
  for (std::string_view constant : {"true", "false", "none", "True", "False", "None"}) {
    if (name == constant) fail(words({"'", name, "' cannot be assigned to"}));
  }
  return {name, {}};
}

Target Parser::assign_target(bool with_namespace) {
  // `ns.name` is an expression that ends up as an assignment.
  return to_target(tuple(true, false, false), with_namespace);
}

Target Parser::to_target(ExprPtr expression, bool with_namespace) {
  if (auto* name = std::get_if<NameExpr>(&expression->node)) {
    if (name->name == "loop" && for_tags_ > 0)
      fail("the special variable 'loop' cannot be assigned to in a loop");
    return {std::move(*name)};
  }
  if (auto* list = std::get_if<ListExpr>(&expression->node); list && list->is_tuple) {
    std::vector<Target> targets;
    for (ExprPtr& item : list->items) targets.push_back(to_target(std::move(item), with_namespace));
    return {std::move(targets)};
  }
  if (auto* attribute = std::get_if<AttributeExpr>(&expression->node);
      attribute && with_namespace) {
    if (auto* space = std::get_if<NameExpr>(&attribute->object->node)) {
      return {NamespaceTarget{std::move(*space), std::move(attribute->name)}};
    }
  }
  fail("this cannot be assigned to");
}

Template parse(std::string_view source, int& line) {
  std::vector<Token> tokens = tokenize(source, line);
  return Parser(std::move(tokens), line).parse();
}

}  // namespace moiety::jinja
