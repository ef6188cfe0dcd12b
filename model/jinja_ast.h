#pragma once

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "model/jinja_filters.h"
#include "model/jinja_operators.h"
#include "model/jinja_value.h"

namespace moiety::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

/// Where a name's variable is: `hops` scopes outwards, then its slot.
struct Reference {
  int hops = -1;
  int slot = -1;
};

struct NameExpr {
  std::string name;
  Reference variable;
};
struct ConstantExpr {
  Value value;
};
struct ListExpr {
  std::vector<ExprPtr> items;
  bool is_tuple = false;
};
struct DictExpr {
  std::vector<std::pair<ExprPtr, ExprPtr>> entries;
};
struct UnaryExpr {
  enum class Operator { kNot, kMinus, kPlus };
  Operator op = Operator::kNot;
  ExprPtr operand;
};
struct BinaryExpr {
  BinaryOperator op = BinaryOperator::kAdd;
  ExprPtr left, right;
};
struct LogicalExpr {
  bool is_and = false;
  ExprPtr left, right;
};
struct ConcatExpr {
  std::vector<ExprPtr> parts;
};
struct CompareExpr {  // first op rest[0] and rest[0] op rest[1] ...
  ExprPtr first;
  std::vector<std::pair<Comparison, ExprPtr>> rest;
};
struct ConditionalExpr {
  ExprPtr condition, then, otherwise;  // otherwise may be null
};
struct AttributeExpr {
  ExprPtr object;
  std::string name;
};
struct ItemExpr {
  ExprPtr object, key;
};
struct SliceExpr {
  ExprPtr object, start, stop, step;  // the last three may be null
};
struct CallArguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star, double_star;  // may be null
};
struct CallExpr {
  ExprPtr callee;
  CallArguments arguments;
};
struct FilterExpr {
  Filter filter = nullptr;  // null: unknown, an error when it is reached
  std::string name;
  ExprPtr input;  // null: the text of the block that the filter belongs to
  CallArguments arguments;
};
struct TestExpr {
  Test test = nullptr;  // as above
  std::string name;
  ExprPtr input;
  CallArguments arguments;
};

struct Expr {
  int line = 0;
  int depth = 1;  ///< levels of nested expressions
  std::variant<NameExpr,
               ConstantExpr,
               ListExpr,
               DictExpr,
               UnaryExpr,
               BinaryExpr,
               LogicalExpr,
               ConcatExpr,
               CompareExpr,
               ConditionalExpr,
               AttributeExpr,
               ItemExpr,
               SliceExpr,
               CallExpr,
               FilterExpr,
               TestExpr>
      node;
};

/// What `set` and `for` assign to.
struct Target;
struct NamespaceTarget {
  NameExpr space;
  std::string attribute;
};
struct Target {
  std::variant<NameExpr, NamespaceTarget, std::vector<Target>> node;
};

/// How a variable of a scope gets its first value each time the scope is entered.
enum class Load { kParameter, kResolve, kAlias, kUndefined };

struct Variable {
  std::string name;
  Load load = Load::kUndefined;
  Reference outer;  ///< of an alias, seen from the enclosing scope
};

/// The variables of one scope. Where Jinja2 keeps a variable follows from the whole text of the
/// scope, not from the order of execution (its idtracking module); jinja_scopes.cc does the same.
struct Scope {
  std::vector<Variable> variables;
};

struct Stmt;
using Body = std::vector<Stmt>;

struct TextStmt {
  std::string text;
};
struct PrintStmt {
  ExprPtr value;
};
struct IfStmt {
  std::vector<std::pair<ExprPtr, Body>> branches;
  Body otherwise;
};
struct ForStmt {
  Target target;       // as seen from body_scope
  Target test_target;  // as seen from test_scope
  ExprPtr iterable, test;
  Body body, otherwise;
  Scope body_scope, test_scope, otherwise_scope;
  Reference loop;
};
struct SetStmt {
  Target target;
  ExprPtr value;
};
struct SetBlockStmt {
  Target target;
  ExprPtr filter;  // may be null
  Body body;
  Scope scope;
};
struct FilterStmt {
  ExprPtr filter;
  Body body;
  Scope scope;
};
/// A macro or the body of a call block.
struct MacroBody {
  std::string name;  // empty: a call block
  std::vector<NameExpr> parameters;
  std::vector<ExprPtr> defaults;  // of the last parameters
  bool uses_caller = false, uses_kwargs = false, uses_varargs = false;
  NameExpr caller, kwargs, varargs;
  Body body;
  Scope scope;
};
struct MacroStmt {
  NameExpr target;
  std::shared_ptr<MacroBody> macro;
};
struct CallStmt {
  ExprPtr call;
  std::shared_ptr<MacroBody> macro;
};
/// `{% generation %}`: a scope that prints its body.
struct GenerationStmt {
  Body body;
  Scope scope;
};
struct WithStmt {
  std::vector<Target> targets;
  std::vector<ExprPtr> values;
  Body body;
  Scope scope;
};
struct BreakStmt {};
struct ContinueStmt {};

struct Stmt {
  int line = 0;
  std::variant<TextStmt,
               PrintStmt,
               IfStmt,
               ForStmt,
               SetStmt,
               SetBlockStmt,
               FilterStmt,
               MacroStmt,
               CallStmt,
               GenerationStmt,
               WithStmt,
               BreakStmt,
               ContinueStmt>
      node;
};

struct Template {
  Body body;
  Scope scope;
};

/// Throws Failure; `line` then says where.
Template parse(std::string_view source, int& line);

/// Gives every name its variable. The last step of parse().
void resolve_scopes(Template& parsed);

}  // namespace moiety::jinja
