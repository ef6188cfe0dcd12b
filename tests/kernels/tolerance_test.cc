#include "tests/kernels/tolerance.h"

#include <cstring>

#include "kernels/implementations.h"
#include "kernels/linear.h"

namespace moiety::kernels {
namespace {

TEST(Tolerance, AcceptsAtTheBoundAndFailsBeyond) {
  const std::vector<double> expected = {1, 2, 3};
  const std::vector<double> bound = {0.5, 0.5, 0.5};
  EXPECT_TRUE(within(expected, std::vector<float>{1.5f, 2, 3}, bound));
  EXPECT_FALSE(within(expected, std::vector<float>{1, 2, 3.75f}, bound));
  EXPECT_FALSE(within(expected, std::vector<float>{1, 2}, bound));
}

TEST(Tolerance, ANanFails) {
  const std::vector<double> one = {1};
  EXPECT_FALSE(within(one, std::vector<float>{NAN}, std::vector<double>{1e30}));
}

TEST(Tolerance, NamesTheWorstElement) {
  const std::vector<double> expected = {1, 2, 3};
  const std::vector<double> bound = {0.125, 0.125, 0.125};
  const auto result = within(expected, std::vector<float>{1.5f, 2, 7}, bound);
  EXPECT_EQ(std::string(result.message()), "element 2 of 3: expected 3, actual 7, bound 0.125");
}

// The bound of a long sum still sees one product that was left out.
TEST(Tolerance, SeesADroppedProductInMostOutputs) {
  constexpr std::int32_t kN = 200;
  constexpr std::int32_t kK = 1024;
  const PackedMatrix w(DType::kF32, kN, kK, random_floats(kN * kK, 1));
  std::vector<float> x = random_floats(kK, 2);
  std::vector<float> expected(kN);
  std::vector<float> dropped(kN);
  std::vector<double> magnitude(kN);
  linear_serial(Variant::kReference, w, x.data(), 1, expected.data());
  reference::linear_magnitude(w, x.data(), 1, magnitude.data());
  x[kK / 2] = 0;
  linear_serial(Variant::kReference, w, x.data(), 1, dropped.data());
  int seen = 0;
  for (std::size_t i = 0; i < kN; ++i) {
    const double bound = sum_bound(kK, kUnitF32, magnitude[i], kUnitF32, expected[i]);
    const double value = expected[i];
    if (!within({&value, 1}, {&dropped[i], 1}, {&bound, 1})) ++seen;
  }
  EXPECT_GT(seen, kN * 9 / 10);
}

TEST(Guarded, StartsAsNanAndSeesWritesOutside) {
  Guarded guarded(3);
  EXPECT_TRUE(std::isnan(guarded.span()[0]) && std::isnan(guarded.span()[2]));
  EXPECT_TRUE(guarded.intact());
  guarded.data()[3] = 0;
  EXPECT_FALSE(guarded.intact());
  Guarded before(3);
  before.data()[-1] = 0;
  EXPECT_FALSE(before.intact());
}

}  // namespace
}  // namespace moiety::kernels
