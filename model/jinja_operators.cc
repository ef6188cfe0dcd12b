// Arithmetic.

#include "model/jinja_operators.h"

#include <cmath>

#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

constexpr std::string_view kSpelling[] = {"+", "-", "*", "/", "//", "%", "**"};

[[noreturn]] void unsupported_operands(BinaryOperator op, const Value& left, const Value& right) {
  require_defined(left);
  require_defined(right);
  std::string message = "unsupported operand types for ";
  message.append(kSpelling[static_cast<std::size_t>(op)]).append(": '").append(type_name(left));
  type_error(message.append("' and '").append(type_name(right)).append("'"));
}

[[noreturn]] void overflow() { runtime_error("an integer beyond 127 bits"); }

Int checked_multiply(Int left, Int right) {
  Int result = 0;
  if (__builtin_mul_overflow(left, right, &result)) overflow();
  return result;
}

Value power(Int base, Int exponent) {
  if (exponent < 0) {
    if (base == 0) runtime_error("0 cannot be raised to a negative power");
    return std::pow(static_cast<double>(base), static_cast<double>(exponent));
  }
  Int result = 1;
  if (base == 0 || base == 1) return exponent == 0 ? Int{1} : base;
  if (base == -1) return exponent % 2 == 0 ? Int{1} : Int{-1};
  for (; exponent > 0; --exponent) result = checked_multiply(result, base);
  return result;
}

// Python rounds quotients towards minus infinity.
Int floor_divide(Int left, Int right) {
  if (right == 0) runtime_error("division by zero");
  if (right == -1) return checked_multiply(left, -1);
  const Int quotient = left / right;
  return (left % right != 0 && (left < 0) != (right < 0)) ? quotient - 1 : quotient;
}

double float_modulo(double left, double right) {
  if (right == 0) runtime_error("float modulo by zero");
  double rest = std::fmod(left, right);
  if (rest != 0) {
    if ((rest < 0) != (right < 0)) rest += right;
    return rest;
  }
  return std::copysign(0.0, right);
}

double float_floor_divide(double left, double right) {
  if (right == 0) runtime_error("float floor division by zero");
  const double quotient = (left - float_modulo(left, right)) / right;
  if (quotient == 0) return std::copysign(0.0, left / right);
  const double floored = std::floor(quotient);
  return quotient - floored > 0.5 ? floored + 1 : floored;
}

Value integers(BinaryOperator op, Int left, Int right) {
  Int result = 0;
  switch (op) {
    case BinaryOperator::kAdd:
      if (__builtin_add_overflow(left, right, &result)) overflow();
      return result;
    case BinaryOperator::kSubtract:
      if (__builtin_sub_overflow(left, right, &result)) overflow();
      return result;
    case BinaryOperator::kMultiply:
      return checked_multiply(left, right);
    case BinaryOperator::kDivide:
      if (right == 0) runtime_error("division by zero");
      return static_cast<double>(left) / static_cast<double>(right);
    case BinaryOperator::kFloorDivide:
      return floor_divide(left, right);
    case BinaryOperator::kModulo:
      if (right == -1) return Int{0};
      return left - floor_divide(left, right) * right;
    case BinaryOperator::kPower:
      return power(left, right);
  }
  return result;
}

Value reals(BinaryOperator op, double left, double right) {
  switch (op) {
    case BinaryOperator::kAdd:
      return left + right;
    case BinaryOperator::kSubtract:
      return left - right;
    case BinaryOperator::kMultiply:
      return left * right;
    case BinaryOperator::kDivide:
      if (right == 0) runtime_error("float division by zero");
      return left / right;
    case BinaryOperator::kFloorDivide:
      return float_floor_divide(left, right);
    case BinaryOperator::kModulo:
      return float_modulo(left, right);
    case BinaryOperator::kPower: {
      if (left == 0 && right < 0) runtime_error("0.0 cannot be raised to a negative power");
      const double result = std::pow(left, right);
      if (std::isnan(result) && !std::isnan(left) && !std::isnan(right))
        unsupported("a complex number");
      if (std::isinf(result) && std::isfinite(left) && std::isfinite(right))
        runtime_error("result too large");
      return result;
    }
  }
  return left;
}

Value repeat(Run& run, const Value& value, Int times) {
  if (times < 0) times = 0;
  if (const Text* text = text_of(value)) {
    run.spend(static_cast<Int>(text->view().size()), times);
    std::string out;
    if (!text->view().empty()) {
      for (Int i = 0; i < times; ++i) out += text->view();
    }
    return run.text(std::move(out), text->markup);
  }
  const Sequence& sequence = *sequence_of(value);
  run.spend(static_cast<Int>(sequence.items.size() * sizeof(Value)), times);
  std::vector<Value> items;
  if (!sequence.items.empty()) {
    for (Int i = 0; i < times; ++i)
      items.insert(items.end(), sequence.items.begin(), sequence.items.end());
  }
  return run.sequence(sequence.type, std::move(items));
}

bool can_repeat(const Value& value) {
  const Sequence* sequence = sequence_of(value);
  return is<Text>(value) || (sequence && sequence->type <= Sequence::Type::kTuple);
}

Value add_texts(Run& run, const Text& left, const Text& right) {
  const bool markup = left.markup || right.markup;
  std::string out;
  out.reserve(left.view().size() + right.view().size());
  out += markup && !left.markup ? escape_html(left.view()) : left.view();
  out += markup && !right.markup ? escape_html(right.view()) : right.view();
  return run.text(std::move(out), markup);
}

}  // namespace

Value apply(Run& run, BinaryOperator op, const Value& left, const Value& right) {
  const Text* left_text = text_of(left);
  if (op == BinaryOperator::kAdd) {
    const Text* right_text = text_of(right);
    if (left_text && right_text) return add_texts(run, *left_text, *right_text);
    const Sequence* a = sequence_of(left);
    const Sequence* b = sequence_of(right);
    if (a && b && a->type == b->type && a->type <= Sequence::Type::kTuple) {
      std::vector<Value> items = a->items;
      items.insert(items.end(), b->items.begin(), b->items.end());
      return run.sequence(a->type, std::move(items));
    }
  }
  if (op == BinaryOperator::kModulo && left_text) return format_percent(run, *left_text, right);
  const auto left_integer = integer_of(left);
  const auto right_integer = integer_of(right);
  if (left_integer && right_integer) return integers(op, *left_integer, *right_integer);
  if (op == BinaryOperator::kMultiply) {
    if (can_repeat(left) && right_integer) return repeat(run, left, *right_integer);
    if (can_repeat(right) && left_integer) return repeat(run, right, *left_integer);
  }
  const auto left_number = number_of(left);
  const auto right_number = number_of(right);
  if (!left_number || !right_number) unsupported_operands(op, left, right);
  return reals(op, *left_number, *right_number);
}

Value negate(const Value& value) {
  if (const auto integer = integer_of(value)) return checked_multiply(*integer, -1);
  if (const auto* real = std::get_if<double>(&value)) return -*real;
  require_defined(value);
  std::string message = "bad operand type for unary -: '";
  type_error(message.append(type_name(value)).append("'"));
}

Value unary_plus(const Value& value) {
  if (const auto integer = integer_of(value)) return *integer;
  if (is<double>(value)) return value;
  require_defined(value);
  std::string message = "bad operand type for unary +: '";
  type_error(message.append(type_name(value)).append("'"));
}

}  // namespace moiety::jinja
