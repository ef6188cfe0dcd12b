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
  if (dtype == DType::kBF16) round_inputs(dtype, problem.x);
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
        sum += problem.x[static_cast<std::size_t>(row) * k + i] * problem.w.at(n, i);
      }
      y.push_back(sum);
    }
  }
  return y;
}

/// How far y may be from `expected` where sums have rounding errors of u_acc. With I8 sums are
/// exact and inputs are not.
std::vector<double> bounds(const Problem& problem,
                           double u_acc,
                           const std::vector<double>& expected) {
  std::vector<double> bound(expected.size());
  if (problem.w.dtype() != DType::kI8) {
    reference::linear_magnitude(problem.w, problem.x.data(), problem.m, bound.data());
    for (std::size_t i = 0; i < bound.size(); ++i) {
      bound[i] = sum_bound(problem.w.k(), u_acc, bound[i], kUnitF32, expected[i]);
    }
    return bound;
  }
  const auto k = static_cast<std::size_t>(problem.w.k());
  const std::vector<float> ones(k, 1);
  std::vector<double> magnitude(static_cast<std::size_t>(problem.w.n()));
  reference::linear_magnitude(problem.w, ones.data(), 1, magnitude.data());
  for (std::size_t i = 0; i < bound.size(); ++i) {
    const std::size_t row = i / magnitude.size();
    const double error = fixed_point_error(std::span(problem.x).subspan(row * k, k));
    bound[i] = error * magnitude[i % magnitude.size()] + 3 * kUnitF32 * std::abs(expected[i]);
  }
  return bound;
}

void expect_close(Variant variant, const Problem& problem, ThreadPool& pool) {
  const std::vector<double> expected = product(problem);
  const std::vector<double> bound =
      bounds(problem, variant == Variant::kReference ? 0x1p-53 : kUnitF32, expected);
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
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    for (std::int32_t m : {0, 1, 2, 3, 4, 5, 6, 7, 17, 33, 66}) {
      for (std::int32_t n : {0, 1, 16, 17, 79}) {
        for (std::int32_t k : {0, 1, 2, 3, 32, 65}) {
          expect_close(GetParam(), make_problem(dtype, m, n, k, 100 + m), pool);
        }
      }
    }
  }
}

TEST_P(LinearOf, MatchesTheDefinitionWhenWorkIsSplit) {
  ThreadPool pool(3);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    for (std::int32_t m : {1, 193}) {
      expect_close(GetParam(), make_problem(dtype, m, 170, 511, 5), pool);
    }
  }
}

TEST_P(LinearOf, ARowHasTheSameBitsAloneInABatchAndOnAnyThreads) {
  constexpr std::int32_t kM = 53;
  constexpr std::int32_t kN = 211;
  constexpr std::int32_t kK = 333;
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
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

// Many rows and a large k: rows in chunks, k in spans.
TEST_P(LinearOf, ARowOfALongBatchHasTheBitsOfTheRowAlone) {
  constexpr std::int32_t kN = 37;
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    for (std::int32_t k : {256, 257, 1030}) {
      const Problem problem = make_problem(dtype, 400, kN, k, 19);
      for (std::int32_t m : {64, 65, 96, 97, 192, 193, 400}) {
        for (std::size_t threads : {1, 3}) {
          ThreadPool pool(threads);
          Guarded y(static_cast<std::size_t>(m) * kN);
          linear(GetParam(), problem.w, problem.x.data(), m, y.data(), pool);
          EXPECT_TRUE(y.intact());
          std::vector<float> alone(kN);
          for (std::int32_t row = m - 1; row >= 0; row -= 31) {
            linear_serial(GetParam(), problem.w, &problem.x[static_cast<std::size_t>(row) * k], 1,
                          alone.data());
            ASSERT_EQ(std::memcmp(alone.data(), &y.span()[static_cast<std::size_t>(row) * kN],
                                  kN * sizeof(float)),
                      0)
                << dtype_name(dtype) << " k=" << k << " m=" << m << " threads=" << threads
                << " row " << row;
          }
        }
      }
    }
  }
}

TEST_P(LinearOf, AColumnHasTheSameBitsInAnyMatrix) {
  // Column 0 of a narrow matrix takes another path (fewer panels at a time) than column 0 of a wide
  // one.
  constexpr std::int32_t kK = 101;
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    const Problem wide = make_problem(dtype, 7, 90, kK, 23);
    std::vector<float> first_columns;
    for (std::int32_t n = 0; n < 5; ++n) {
      for (std::int32_t k = 0; k < kK; ++k)
        first_columns.push_back(static_cast<float>(wide.w.at(n, k)));
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
  for (DType dtype : {DType::kBF16, DType::kI8}) {
    Problem problem = make_problem(dtype, 8, 40, 30, 3);
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
}

TEST(LinearI8, EveryVariantButTheReferenceHasTheSameBits) {
  ThreadPool pool(2);
  for (const auto& [m, n, k] : {std::tuple{1, 16, 64}, {5, 33, 131}, {40, 70, 1027}}) {
    const Problem problem = make_problem(DType::kI8, m, n, k, 29);
    std::vector<float> plain(static_cast<std::size_t>(m) * n), y(plain.size());
    linear(Variant::kPlain, problem.w, problem.x.data(), m, plain.data(), pool);
    for (const Variant variant : supported_variants()) {
      if (variant == Variant::kReference) continue;
      linear(variant, problem.w, problem.x.data(), m, y.data(), pool);
      EXPECT_EQ(std::memcmp(y.data(), plain.data(), y.size() * sizeof(float)), 0)
          << variant_name(variant) << " m=" << m;
    }
  }
}

// All weights and inputs as large as they get: 127 * 32639 * k is far beyond 32 bits.
TEST_P(LinearOf, I8HoldsTheLargestSums) {
  constexpr std::int32_t kK = 70001;
  ThreadPool pool(1);
  for (const float sign : {1.0f, -1.0f}) {
    std::vector<float> weights(2 * kK, sign);
    for (std::size_t i = kK; i < weights.size(); i += 2) weights[i] = -sign;
    Problem problem{PackedMatrix(DType::kI8, 2, kK, weights), std::vector<float>(kK, 0.75f), 1};
    std::vector<float> y(2);
    linear(GetParam(), problem.w, problem.x.data(), 1, y.data(), pool);
    EXPECT_NEAR(y[0], sign * 0.75 * kK, 0.75 * kK * 1e-6);
    EXPECT_NEAR(y[1], sign * -0.75, 1e-6);
  }
}

// Each scale alone would lead beyond what a float holds.
TEST_P(LinearOf, I8TakesLargeInputsBesideSmallWeights) {
  ThreadPool pool(1);
  for (const float x : {3e38f, 1e-30f}) {
    const Problem problem{PackedMatrix(DType::kI8, 3, 64, std::vector<float>(3 * 64, 0x1p-10f)),
                          std::vector<float>(64, x), 1};
    std::vector<float> y(3);
    linear(GetParam(), problem.w, problem.x.data(), 1, y.data(), pool);
    for (const float value : y) EXPECT_NEAR(value / x, 0x1p-4, 0x1p-4 * 1e-4);
  }
}

// What the AMX variant computes, with tiles in memory: runs on machines that have no such tiles.
TEST(LinearAmx, EmulatedTilesMatchTheDefinitionAndDoNotDependOnTheBatch) {
  if (!variant_supported(Variant::kAvx512)) {
    GTEST_SKIP() << "the AMX file holds AVX-512 instructions, which this CPU cannot run";
  }
  // Rows [from, m) of a batch that begins at row `first` of the problem, panels from `panel` on.
  const auto run = [](const Problem& problem, std::int32_t first, std::int32_t m, std::int32_t from,
                      float* y, std::int32_t panel = 0) {
    InputRows x;
    const std::int32_t k = problem.w.k();
    x.reset(Variant::kAmx, problem.w.dtype(), m, k);
    for (std::int32_t row = 0; row < m; ++row) {
      x.set_row(row, problem.x.data() + static_cast<std::ptrdiff_t>(first + row) * k);
    }
    amx::linear_tile_emulated(
        {.type = problem.w.dtype() == DType::kI8 ? WeightType::kI8 : WeightType::kBF16,
         .weights = problem.w.data(),
         .panel_bytes = static_cast<std::ptrdiff_t>(problem.w.panel_bytes()),
         .scales = problem.w.scales(),
         .n = problem.w.n(),
         .k = k,
         .panel_begin = panel,
         .panel_end = problem.w.num_panels(),
         .rows = m - from,
         .x = x.row(from),
         .x_stride = x.stride(),
         .x_scales = x.scales(from),
         .x_offsets = x.offsets(from),
         .y = y,
         .y_stride = problem.w.n(),
         .next = panel == 0 ? nullptr : problem.w.data()});
  };
  for (DType dtype : {DType::kBF16, DType::kI8}) {
    for (const auto& [m, n, k] : {std::tuple{2, 5, 0},
                                  {1, 16, 32},
                                  {16, 33, 31},
                                  {17, 15, 64},
                                  {33, 70, 97},
                                  {201, 40, 300},
                                  {97, 20, 2052}}) {
      const Problem problem = make_problem(dtype, m, n, k, 7);
      const std::vector<double> expected = product(problem);
      Guarded y(expected.size());
      run(problem, 0, m, 0, y.data());
      EXPECT_TRUE(within(expected, y.span(), bounds(problem, kUnitF32, expected)))
          << dtype_name(dtype) << " m=" << m;
      EXPECT_TRUE(y.intact());
      if (dtype == DType::kI8) {
        std::vector<float> plain(expected.size());
        linear_serial(Variant::kPlain, problem.w, problem.x.data(), m, plain.data());
        EXPECT_EQ(std::memcmp(y.data(), plain.data(), plain.size() * sizeof(float)), 0);
      }
      std::vector<float> alone(static_cast<std::size_t>(n));
      for (std::int32_t row = 0; row < m; ++row) {
        run(problem, row, 1, 0, alone.data());
        ASSERT_EQ(std::memcmp(alone.data(), &y.span()[static_cast<std::size_t>(row) * n],
                              alone.size() * sizeof(float)),
                  0);
      }
      // Without the first panel, and with weights to fetch ahead.
      if (n > PackedMatrix::kPanel) {
        const auto columns = static_cast<std::size_t>(n - PackedMatrix::kPanel);
        std::vector<float> others(expected.size());
        run(problem, 0, m, 0, others.data(), 1);
        for (std::size_t row = 0; row < static_cast<std::size_t>(m); ++row) {
          const std::size_t at = row * static_cast<std::size_t>(n);
          ASSERT_EQ(std::memcmp(&others[at], &y.span()[at + PackedMatrix::kPanel],
                                columns * sizeof(float)),
                    0);
        }
      }
      // The last row of a batch, where it is: tiles read on behind it, which ASan watches.
      run(problem, 0, m, m - 1, alone.data());
      ASSERT_EQ(std::memcmp(alone.data(), &y.span()[static_cast<std::size_t>(m - 1) * n],
                            alone.size() * sizeof(float)),
                0);
    }
  }
}

// Several matrices of one call are those of calls of their own.
TEST_P(LinearOf, JobsOfOneCallHaveTheBitsOfTheirOwnCalls) {
  constexpr std::int32_t kM = 21;
  constexpr std::int32_t kK = 130;
  ThreadPool pool(2);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    std::vector<Problem> problems;
    for (std::int32_t n : {200, 3, 64}) problems.push_back(make_problem(dtype, kM, n, kK, 11));
    InputRows x;
    x.reset(GetParam(), dtype, kM, kK);
    for (std::int32_t row = 0; row < kM; ++row) x.set_row(row, &problems[0].x[row * kK]);
    std::vector<std::vector<float>> together;
    std::vector<LinearJob> jobs;
    for (const Problem& problem : problems) {
      together.emplace_back(static_cast<std::size_t>(kM) * problem.w.n(), NAN);
    }
    for (std::size_t i = 0; i < problems.size(); ++i) {
      jobs.push_back({&problems[i].w, together[i].data()});
    }
    linear(x, jobs, pool);
    for (std::size_t i = 0; i < problems.size(); ++i) {
      std::vector<float> own(together[i].size());
      linear(GetParam(), problems[i].w, problems[0].x.data(), kM, own.data(), pool);
      EXPECT_EQ(std::memcmp(own.data(), together[i].data(), own.size() * sizeof(float)), 0);
    }
  }
}

}  // namespace
}  // namespace moiety::kernels
