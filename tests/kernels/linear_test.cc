#include "kernels/linear.h"

#include <cstring>

#include "kernels/elementwise.h"
#include "kernels/implementations.h"
#include "tests/kernels/tolerance.h"

namespace moiety::kernels {
namespace {

struct Problem {
  PackedMatrix w;
  std::vector<float> x;
  std::int32_t m;
};

Problem make_problem(DType dtype, std::int32_t m, std::int32_t n, std::int32_t k, unsigned seed) {
  Problem problem{PackedMatrix(dtype, n, k, random_floats(static_cast<std::size_t>(n) * k, seed)),
                  random_floats(static_cast<std::size_t>(m) * k, seed + 1), m};
  round_inputs(dtype, problem.x);
  return problem;
}

/// w x in double, straight from the definition.
std::vector<double> product(const Problem& problem) {
  std::vector<double> y;
  const std::int32_t k = problem.w.k();
  for (std::int32_t row = 0; row < problem.m; ++row) {
    for (std::int32_t n = 0; n < problem.w.n(); ++n) {
      double sum = 0;
      for (std::int32_t i = 0; i < k; ++i) {
        sum += static_cast<double>(problem.x[static_cast<std::size_t>(row) * k + i]) *
               problem.w.at(n, i);
      }
      y.push_back(sum);
    }
  }
  return y;
}

void expect_close(Variant variant, const Problem& problem, ThreadPool& pool) {
  const std::vector<double> expected = product(problem);
  std::vector<double> bound(expected.size());
  reference::linear_magnitude(problem.w, problem.x.data(), problem.m, bound.data());
  const double u_acc = variant == Variant::kReference ? 0x1p-53 : kUnitF32;
  for (std::size_t i = 0; i < bound.size(); ++i) {
    bound[i] = sum_bound(problem.w.k(), u_acc, bound[i], kUnitF32, expected[i]);
  }
  Guarded y(expected.size());
  linear(variant, problem.w, problem.x.data(), problem.m, y.data(), pool);
  EXPECT_TRUE(within(expected, y.span(), bound))
      << variant_name(variant) << " " << dtype_name(problem.w.dtype()) << " m=" << problem.m
      << " n=" << problem.w.n() << " k=" << problem.w.k();
  EXPECT_TRUE(y.intact());
}

class LinearOf : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(Kernels,
                         LinearOf,
                         testing::ValuesIn(supported_variants()),
                         variant_test_name);

TEST_P(LinearOf, MatchesTheDefinitionForEveryShape) {
  ThreadPool pool(2);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (std::int32_t m : {0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13}) {
      for (std::int32_t n : {0, 1, 15, 16, 17, 33, 64, 79}) {
        for (std::int32_t k : {0, 1, 2, 3, 64, 65}) {
          expect_close(GetParam(), make_problem(dtype, m, n, k, 100 + m), pool);
        }
      }
    }
  }
}

TEST_P(LinearOf, MatchesTheDefinitionWhenWorkIsSplit) {
  ThreadPool pool(3);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (std::int32_t m : {1, 47, 48, 49, 97})
      expect_close(GetParam(), make_problem(dtype, m, 300, 511, 5), pool);
  }
}

TEST_P(LinearOf, ARowHasTheSameBitsAloneInABatchAndOnAnyThreads) {
  constexpr std::int32_t kM = 53;
  constexpr std::int32_t kN = 211;
  constexpr std::int32_t kK = 333;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const Problem problem = make_problem(dtype, kM, kN, kK, 17);
    std::vector<float> alone(static_cast<std::size_t>(kM) * kN);
    for (std::size_t row = 0; row < kM; ++row) {
      linear_serial(GetParam(), problem.w, &problem.x[row * kK], 1, &alone[row * kN]);
    }
    for (std::size_t threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      for (std::int32_t m : {1, 2, 3, 4, 5, 6, 7, 8, 13, 29, 53}) {
        const auto size = static_cast<std::size_t>(m) * kN;
        // The first rows, and the last, so that a row has other neighbours and another place.
        for (std::size_t first : {std::size_t{0}, static_cast<std::size_t>(kM - m)}) {
          Guarded y(size);
          linear(GetParam(), problem.w, &problem.x[first * kK], m, y.data(), pool);
          ASSERT_EQ(std::memcmp(y.data(), &alone[first * kN], size * sizeof(float)), 0)
              << dtype_name(dtype) << " threads=" << threads << " m=" << m << " first row "
              << first;
        }
      }
    }
  }
}

TEST_P(LinearOf, AColumnHasTheSameBitsInAnyMatrix) {
  // Column 0 of a narrow matrix takes another path (fewer panels at a time) than column 0 of a wide
  // one.
  constexpr std::int32_t kK = 101;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const Problem wide = make_problem(dtype, 7, 90, kK, 23);
    std::vector<float> first_columns;
    for (std::int32_t n = 0; n < 5; ++n) {
      for (std::int32_t k = 0; k < kK; ++k) first_columns.push_back(wide.w.at(n, k));
    }
    const PackedMatrix narrow(dtype, 5, kK, first_columns);
    std::vector<float> y_wide(7 * 90);
    std::vector<float> y_narrow(7 * 5);
    for (std::int32_t m = 1; m <= 7; ++m) {
      linear_serial(GetParam(), wide.w, wide.x.data(), m, y_wide.data());
      linear_serial(GetParam(), narrow, wide.x.data(), m, y_narrow.data());
      for (std::size_t row = 0; row < static_cast<std::size_t>(m); ++row) {
        ASSERT_EQ(std::memcmp(&y_wide[row * 90], &y_narrow[row * 5], 5 * sizeof(float)), 0)
            << "m=" << m;
      }
    }
  }
}

TEST_P(LinearOf, ANanInOneRowStaysThere) {
  Problem problem = make_problem(DType::kBF16, 8, 40, 30, 3);
  Guarded clean(8 * 40);
  linear_serial(GetParam(), problem.w, problem.x.data(), 8, clean.data());
  problem.x[3 * 30 + 4] = NAN;
  Guarded y(8 * 40);
  linear_serial(GetParam(), problem.w, problem.x.data(), 8, y.data());
  for (std::size_t row = 0; row < 8; ++row) {
    for (std::size_t n = 0; n < 40; ++n) {
      if (row == 3) {
        EXPECT_TRUE(std::isnan(y.span()[row * 40 + n]));
      } else {
        EXPECT_EQ(y.span()[row * 40 + n], clean.span()[row * 40 + n]);
      }
    }
  }
}

}  // namespace
}  // namespace moiety::kernels
