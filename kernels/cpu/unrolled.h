#pragma once

/// For files that are compiled for one instruction set: everything here is inlined by force.
namespace moiety::kernels {

/// A number that is known when the code is compiled.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

/// Calls body(Constant<0>), body(Constant<1>), ... Unlike a loop it leaves only constant indices,
/// which is what lets the compiler keep an array of sums in registers.
template <int kCount, class Body>
[[gnu::always_inline]] inline void unrolled(const Body& body) {
  if constexpr (kCount > 0) {
    unrolled<kCount - 1>(body);
    body(Constant<kCount - 1>{});
  }
}

}  // namespace moiety::kernels
