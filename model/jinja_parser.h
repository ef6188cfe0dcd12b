#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/jinja_ast.h"
#include "model/jinja_lexer.h"
#include "model/jinja_run.h"

namespace moiety::jinja {

/// Builds the tree of one template, by Jinja's grammar. Throws Failure; `line` then says where.
class Parser {
 public:
  Parser(std::vector<Token> tokens, int& line) : tokens_(std::move(tokens)), line_(line) {}
  Template parse();

 private:
  friend class Deeper;

  // Tokens.
  const Token& current() const { return tokens_[position_]; }
  const Token& look_ahead() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }
  const Token& next();
  bool at(TokenType type) const { return current().type == type; }
  bool at_operator(std::string_view spelling) const;
  bool at_name(std::string_view name) const;
  bool skip_operator(std::string_view spelling);
  bool skip_name(std::string_view name);
  void expect(TokenType type);
  void expect_operator(std::string_view spelling);
  void expect_name(std::string_view name);
  std::string identifier();
  [[noreturn]] void fail(std::string message);
  [[noreturn]] void unexpected();

  // Statements.
  Body statements_until(const std::vector<std::string_view>& ends);
  /// Fails if an unknown filter or test was seen where it counts.
  void settle_unknown();
  Body block_body(const std::vector<std::string_view>& ends);
  Body block_body_inside(const std::vector<std::string_view>& ends);
  Stmt statement();
  Stmt if_statement();
  Stmt for_statement();
  Stmt set_statement();
  Stmt macro_statement();
  Stmt call_statement();
  Stmt filter_statement();
  Stmt with_statement();
  Body print_statement();
  void signature(MacroBody& macro);
  void macro_body(MacroBody& macro, std::string_view end);
  Target assign_target(bool with_namespace);
  Target to_target(ExprPtr expression, bool with_namespace);
  NameExpr assigned_name();

  // Expressions.
  ExprPtr make(int line, decltype(Expr::node) node);
  ExprPtr expression(bool with_conditional = true);
  ExprPtr conditional();
  ExprPtr or_expression();
  ExprPtr and_expression();
  ExprPtr not_expression();
  ExprPtr comparison();
  ExprPtr sum();
  ExprPtr concatenation();
  ExprPtr product();
  ExprPtr power();
  ExprPtr unary(bool with_filter);
  ExprPtr primary();
  ExprPtr tuple(bool simplified, bool with_conditional, bool in_parentheses);
  ExprPtr list_literal();
  ExprPtr dict_literal();
  ExprPtr postfix(ExprPtr value);
  ExprPtr filters_and_tests(ExprPtr value);
  ExprPtr filter_chain(ExprPtr input, bool first_without_pipe);
  ExprPtr filter(ExprPtr input);
  ExprPtr test(ExprPtr input);
  ExprPtr subscript(ExprPtr object);
  ExprPtr subscribed(ExprPtr& object, bool& is_slice);
  ExprPtr call_of(ExprPtr callee);
  CallArguments call_arguments();
  std::string dotted_name();

  std::vector<Token> tokens_;
  int& line_;
  std::size_t position_ = 0;
  int depth_ = 0;
  // Jinja lets unknown filters and tests pass where an `if` may keep them from being reached.
  bool in_condition_ = false;
  std::vector<std::pair<int, std::string>>
      unknown_;                     // (line, message), not yet known to be so placed
  int loops_ = 0;                   // that `break` can leave here
  int for_tags_ = 0;                // around the current statement, macros or not
  std::vector<MacroBody*> macros_;  // whose bodies are being parsed
};

/// One level of nesting while parsing. Fails beyond kMaxParseDepth.
class Deeper {
 public:
  explicit Deeper(Parser& parser) : parser_(parser) {
    if (++parser_.depth_ > kMaxParseDepth) parser_.fail("nested too deeply");
  }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;
  ~Deeper() { --parser_.depth_; }

 private:
  Parser& parser_;
};

}  // namespace moiety::jinja
