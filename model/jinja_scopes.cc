// Which variable a name means. Jinja2 decides it from the text: a scope owns the names that it
// assigns, wherever it does; other names belong to the scopes around it or to the variables of the
// rendering.

#include <unordered_map>

#include "model/jinja_ast.h"

namespace moiety::jinja {
namespace {

// A scope that is being worked on, and those around it.
struct Level {
  Scope& scope;
  Level* parent = nullptr;
  std::unordered_map<std::string, int> slots = {};

  Reference find(const std::string& name) const {
    int hops = 0;
    for (const Level* level = this; level; level = level->parent, ++hops) {
      const auto found = level->slots.find(name);
      if (found != level->slots.end()) return {hops, found->second};
    }
    return {};
  }

  Reference define(const std::string& name, Load load, Reference outer = {}) {
    const auto [slot, is_new] = slots.try_emplace(name, static_cast<int>(scope.variables.size()));
    if (is_new) {
      scope.variables.push_back({name, load, outer});
    } else {
      scope.variables[static_cast<std::size_t>(slot->second)].load = load;
    }
    return {0, slot->second};
  }

  // A name that is read.
  void load(const std::string& name) {
    if (find(name).slot < 0) define(name, Load::kResolve);
  }

  // A name that is assigned; in a branch it may keep the value that the rendering gave it.
  void store(const std::string& name, bool in_branch) {
    if (slots.contains(name)) return;
    const Reference outer = parent ? parent->find(name) : Reference{};
    if (outer.slot >= 0) {
      define(name, Load::kAlias, outer);
    } else {
      define(name, in_branch ? Load::kResolve : Load::kUndefined);
    }
  }
};

// Calls visit(NameExpr&) for each name that an expression reads, in the order of the text.
template <class Visit>
struct Names {
  Visit visit;

  void walk(const ExprPtr& expression) {
    if (expression) std::visit(*this, expression->node);
  }
  void walk(CallArguments& arguments) {
    for (const ExprPtr& value : arguments.positional) walk(value);
    for (auto& [name, value] : arguments.named) walk(value);
    walk(arguments.star);
    walk(arguments.double_star);
  }
  void operator()(NameExpr& e) { visit(e); }
  void operator()(ConstantExpr&) {}
  void operator()(ListExpr& e) {
    for (const ExprPtr& item : e.items) walk(item);
  }
  void operator()(DictExpr& e) {
    for (auto& [key, value] : e.entries) walk(key), walk(value);
  }
  void operator()(UnaryExpr& e) { walk(e.operand); }
  void operator()(BinaryExpr& e) { walk(e.left), walk(e.right); }
  void operator()(LogicalExpr& e) { walk(e.left), walk(e.right); }
  void operator()(ConcatExpr& e) {
    for (const ExprPtr& part : e.parts) walk(part);
  }
  void operator()(CompareExpr& e) {
    walk(e.first);
    for (auto& [op, operand] : e.rest) walk(operand);
  }
  void operator()(ConditionalExpr& e) { walk(e.condition), walk(e.then), walk(e.otherwise); }
  void operator()(AttributeExpr& e) { walk(e.object); }
  void operator()(ItemExpr& e) { walk(e.object), walk(e.key); }
  void operator()(SliceExpr& e) { walk(e.object), walk(e.start), walk(e.stop), walk(e.step); }
  void operator()(CallExpr& e) { walk(e.callee), walk(e.arguments); }
  void operator()(FilterExpr& e) { walk(e.input), walk(e.arguments); }
  void operator()(TestExpr& e) { walk(e.input), walk(e.arguments); }
};

void load_names(Level& level, const ExprPtr& expression) {
  const auto load = [&](NameExpr& name) { level.load(name.name); };
  Names<decltype(load)>{load}.walk(expression);
}

void resolve_names(Level& level, const ExprPtr& expression) {
  const auto resolve = [&](NameExpr& name) {
    level.load(name.name);  // names of filters of `set` blocks were not seen before
    name.variable = level.find(name.name);
  };
  Names<decltype(resolve)>{resolve}.walk(expression);
}

enum class As { kStored, kStoredInBranch, kParameter };

void declare(Level& level, const Target& target, As as) {
  if (const auto* name = std::get_if<NameExpr>(&target.node)) {
    if (as == As::kParameter) {
      level.define(name->name, Load::kParameter);
    } else {
      level.store(name->name, as == As::kStoredInBranch);
    }
  } else if (const auto* space = std::get_if<NamespaceTarget>(&target.node)) {
    level.load(space->space.name);
  } else {
    for (const Target& each : std::get<std::vector<Target>>(target.node)) declare(level, each, as);
  }
}

void resolve(Level& level, Target& target) {
  if (auto* name = std::get_if<NameExpr>(&target.node)) {
    name->variable = level.find(name->name);
  } else if (auto* space = std::get_if<NamespaceTarget>(&target.node)) {
    space->space.variable = level.find(space->space.name);
  } else {
    for (Target& each : std::get<std::vector<Target>>(target.node)) resolve(level, each);
  }
}

// First pass: the names that the statements of one scope read and assign. Scopes inside are not
// entered.
struct Collect {
  Level& level;
  bool in_branch = false;

  void walk(Body& body) {
    for (Stmt& statement : body) std::visit(*this, statement.node);
  }
  As stored() const { return in_branch ? As::kStoredInBranch : As::kStored; }

  void operator()(TextStmt&) {}
  void operator()(PrintStmt& s) { load_names(level, s.value); }
  void operator()(IfStmt& s) {
    const bool outside = in_branch;
    for (std::size_t i = 0; i < s.branches.size(); ++i) {
      load_names(level, s.branches[i].first);
      in_branch = true;
      walk(s.branches[i].second);
    }
    walk(s.otherwise);
    in_branch = outside;
  }
  void operator()(ForStmt& s) { load_names(level, s.iterable); }
  void operator()(SetStmt& s) {
    load_names(level, s.value);
    declare(level, s.target, stored());
  }
  void operator()(SetBlockStmt& s) { declare(level, s.target, stored()); }
  void operator()(FilterStmt& s) { load_names(level, s.filter); }
  void operator()(MacroStmt& s) { level.store(s.target.name, in_branch); }
  void operator()(CallStmt& s) { load_names(level, s.call); }
  void operator()(GenerationStmt&) {}
  void operator()(WithStmt& s) {
    for (const ExprPtr& value : s.values) load_names(level, value);
  }
  void operator()(BreakStmt&) {}
  void operator()(ContinueStmt&) {}
};

// Second pass: references for all names of a scope, then the scopes inside.
struct Assign {
  Level& level;

  void walk(Body& body) {
    for (Stmt& statement : body) std::visit(*this, statement.node);
  }
  void enter(Level& inner, Body& body) {
    Collect{inner}.walk(body);
    Assign{inner}.walk(body);
  }
  void macro(MacroBody& macro);

  void operator()(TextStmt&) {}
  void operator()(PrintStmt& s) { resolve_names(level, s.value); }
  void operator()(IfStmt& s) {
    for (auto& [condition, body] : s.branches) {
      resolve_names(level, condition);
      walk(body);
    }
    walk(s.otherwise);
  }
  void operator()(ForStmt& s) {
    resolve_names(level, s.iterable);
    if (s.test) {
      Level inner{s.test_scope, &level};
      declare(inner, s.test_target, As::kParameter);
      load_names(inner, s.test);
      resolve(inner, s.test_target);
      resolve_names(inner, s.test);
    }
    Level inner{s.body_scope, &level};
    s.loop = inner.define("loop", Load::kParameter);
    declare(inner, s.target, As::kParameter);
    resolve(inner, s.target);
    enter(inner, s.body);
    Level otherwise{s.otherwise_scope, &level};
    enter(otherwise, s.otherwise);
  }
  void operator()(SetStmt& s) {
    resolve_names(level, s.value);
    resolve(level, s.target);
  }
  void operator()(SetBlockStmt& s) {
    resolve(level, s.target);
    Level inner{s.scope, &level};
    enter(inner, s.body);
    resolve_names(inner, s.filter);
  }
  void operator()(FilterStmt& s) {
    Level inner{s.scope, &level};
    Collect{inner}.walk(s.body);
    load_names(inner, s.filter);
    Assign{inner}.walk(s.body);
    resolve_names(inner, s.filter);
  }
  void operator()(MacroStmt& s) {
    s.target.variable = level.find(s.target.name);
    macro(*s.macro);
  }
  void operator()(CallStmt& s) {
    resolve_names(level, s.call);
    macro(*s.macro);
  }
  void operator()(GenerationStmt& s) {
    Level inner{s.scope, &level};
    enter(inner, s.body);
  }
  void operator()(WithStmt& s) {
    for (const ExprPtr& value : s.values) resolve_names(level, value);
    Level inner{s.scope, &level};
    for (Target& target : s.targets) {
      declare(inner, target, As::kParameter);
      resolve(inner, target);
    }
    enter(inner, s.body);
  }
  void operator()(BreakStmt&) {}
  void operator()(ContinueStmt&) {}
};

void Assign::macro(MacroBody& macro) {
  Level inner{macro.scope, &level};
  const auto parameter = [&](NameExpr& name) {
    name.variable = inner.define(name.name, Load::kParameter);
  };
  for (NameExpr& name : macro.parameters) parameter(name);
  if (macro.uses_caller) parameter(macro.caller);
  if (macro.uses_kwargs) parameter(macro.kwargs);
  if (macro.uses_varargs) parameter(macro.varargs);
  for (const ExprPtr& value : macro.defaults) load_names(inner, value);
  Collect{inner}.walk(macro.body);
  for (const ExprPtr& value : macro.defaults) resolve_names(inner, value);
  Assign{inner}.walk(macro.body);
}

}  // namespace

void resolve_scopes(Template& parsed) {
  Level root{parsed.scope};
  Collect{root}.walk(parsed.body);
  Assign{root}.walk(parsed.body);
}

}  // namespace moiety::jinja
