#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/jinja_ast.h"
#include "model/jinja_run.h"

namespace moiety::jinja {

/// The variables of one entered scope. Frames live as long as their scope runs; macros refer to
/// theirs weakly.
struct Frame {
  const Scope& scope;
  Frame* parent = nullptr;
  std::vector<Value> slots = {};
};
using FramePtr = std::shared_ptr<Frame>;

/// Renders one template once. Throws Failure; run.line then says where.
class Interpreter {
 public:
  Interpreter(Run& run, const Dict& variables) : run_(run), variables_(variables) {}
  std::string render(const Template& parsed);

  /// Calls a macro that was defined in `definition`.
  Value call_macro(const MacroBody& macro, Frame& definition, Arguments arguments);

 private:
  friend struct Execute;
  friend struct Evaluate;
  enum class Flow { kNext, kBreak, kContinue };

  // Statements.
  Flow execute(const Body& body, const FramePtr& frame);
  Flow for_loop(const ForStmt& loop, const FramePtr& frame);
  Flow captured(const Body& body, const FramePtr& frame, std::string& out);
  FramePtr enter(const Scope& scope, Frame* parent);
  /// Gives the variables of a scope their first values, parameters excepted.
  void load(Frame& frame);
  void assign(const Target& target, Frame& frame, const Value& value);
  void require_namespaces(const Target& target, Frame& frame);
  void print(std::string_view text);
  void print(const Value& value);

  // Expressions.
  Value evaluate(const Expr& expression, Frame& frame);
  Arguments arguments(const CallArguments& arguments, Frame& frame);
  Value filter(const FilterExpr& filter, Frame& frame, const Value& input);
  /// Applies the filters of a block to its text.
  Value filter_block(const Expr& filter, Frame& frame, Value text);
  Value call_block(const CallStmt& statement, const FramePtr& frame);

  static Value& slot(const Reference& reference, Frame& frame);
  Value resolve(const std::string& name) const;

  Run& run_;
  const Dict& variables_;
  std::string* out_ = nullptr;
};

}  // namespace moiety::jinja
