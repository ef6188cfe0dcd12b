#include "kernels/expert_ffn.h"

#include <cstring>

#include "kernels/elementwise.h"
#include "kernels/implementations.h"
#include "tests/kernels/tolerance.h"

namespace moiety::kernels {
namespace {

std::vector<float> make_rows(DType dtype, std::int32_t m, std::int32_t hidden) {
  std::vector<float> x = random_floats(static_cast<std::size_t>(m) * hidden, 4);
  round_inputs(dtype, x);
  return x;
}

double row_dot(const PackedMatrix& w, std::int32_t n, const double* x, bool magnitude) {
  double sum = 0;
  for (std::int32_t k = 0; k < w.k(); ++k) {
    const double term = w.at(n, k) * x[k];
    sum += magnitude ? std::abs(term) : term;
  }
  return sum;
}

/// One row in double without any rounding inside, and how far a float variant may be from it: the
/// bounds of gate and up carried through silu (slope at most 1.1) and, unless F32, one rounding of
/// the down inputs; with I8 also that of x to fixed point.
void expect_row(const ExpertWeights& weights,
                const float* x_row,
                std::vector<double>& expected,
                std::vector<double>& bound) {
  const std::int32_t hidden = weights.gate.k();
  const std::int32_t intermediate = weights.gate.n();
  const std::vector<double> x(x_row, x_row + hidden);
  const bool is_i8 = weights.down.dtype() == DType::kI8;
  const double x_error = is_i8 ? fixed_point_error({x_row, static_cast<std::size_t>(hidden)}) : 0;
  const std::vector<double> errors(x.size(), x_error);
  std::vector<double> h(static_cast<std::size_t>(intermediate));
  std::vector<double> h_error(h.size());
  for (std::int32_t i = 0; i < intermediate; ++i) {
    const double gate = row_dot(weights.gate, i, x.data(), false);
    const double up = row_dot(weights.up, i, x.data(), false);
    const double gate_error =
        sum_bound(hidden, kUnitF32, row_dot(weights.gate, i, x.data(), true), kUnitF32, gate) +
        row_dot(weights.gate, i, errors.data(), true);
    const double up_error =
        sum_bound(hidden, kUnitF32, row_dot(weights.up, i, x.data(), true), kUnitF32, up) +
        row_dot(weights.up, i, errors.data(), true);
    const double silu = gate / (1 + std::exp(-gate));
    h[i] = silu * up;
    h_error[i] =
        1.1 * gate_error * std::abs(up) + std::abs(silu) * up_error + 8 * kUnitF32 * std::abs(h[i]);
    if (weights.down.dtype() == DType::kBF16) h_error[i] += 1.01 * kUnitBf16 * std::abs(h[i]);
  }
  if (is_i8) {
    const std::vector<float> floats(h.begin(), h.end());
    for (double& error : h_error) error += 1.01 * fixed_point_error(floats);
  }
  for (std::int32_t n = 0; n < hidden; ++n) {
    expected.push_back(row_dot(weights.down, n, h.data(), false));
    double carried = 0;
    for (std::int32_t i = 0; i < intermediate; ++i)
      carried += std::abs(weights.down.at(n, i)) * h_error[i];
    bound.push_back(carried + sum_bound(intermediate, kUnitF32,
                                        row_dot(weights.down, n, h.data(), true), kUnitF32,
                                        expected.back()));
  }
}

class ExpertOf : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(Kernels,
                         ExpertOf,
                         testing::ValuesIn(supported_variants()),
                         variant_test_name);

/// A batch whose rows lie at random among `num_experts` experts, some of them with none.
struct Batch {
  std::vector<ExpertWeights> experts;
  std::vector<ExpertRows> groups;
  std::vector<float> x;
  std::int32_t num_rows = 0;

  Batch(DType dtype,
        std::int32_t hidden,
        std::int32_t intermediate,
        std::span<const std::int32_t> counts) {
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const auto size = static_cast<std::size_t>(hidden) * intermediate;
      const auto seed = static_cast<unsigned>(10 * i);
      experts.push_back({PackedMatrix(dtype, intermediate, hidden, random_floats(size, seed)),
                         PackedMatrix(dtype, intermediate, hidden, random_floats(size, seed + 1)),
                         PackedMatrix(dtype, hidden, intermediate, random_floats(size, seed + 2))});
    }
    for (std::size_t i = 0; i < counts.size(); ++i) {
      if (counts[i] == 0) continue;
      groups.push_back({&experts[i], num_rows, counts[i]});
      num_rows += counts[i];
    }
    x = make_rows(dtype == DType::kI8 ? DType::kF32 : DType::kBF16, num_rows, hidden);
  }

  InputRows rows(Variant variant, std::int32_t first, std::int32_t count) const {
    const std::int32_t hidden = experts.front().gate.k();
    InputRows rows;
    rows.reset(variant, experts.front().gate.dtype(), count, hidden);
    for (std::int32_t row = 0; row < count; ++row) {
      rows.set_row(row, &x[static_cast<std::size_t>(first + row) * hidden]);
    }
    return rows;
  }
};

TEST_P(ExpertOf, AGroupedBatchHasTheBitsOfEachRowAlone) {
  constexpr std::int32_t kHidden = 530;
  constexpr std::int32_t kIntermediate = 611;  // several tasks, the last one not full
  const std::int32_t counts[] = {3, 0, 1, 201, 17};
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    const Batch batch(dtype, kHidden, kIntermediate, counts);
    std::vector<float> alone(static_cast<std::size_t>(batch.num_rows) * kHidden);
    ThreadPool one(1);
    GroupedExperts experts;
    for (const ExpertRows& group : batch.groups) {
      for (std::int32_t row = group.first; row < group.first + group.count; row += 20) {
        const ExpertRows only{group.weights, 0, 1};
        experts.run(batch.rows(GetParam(), row, 1), {&only, 1},
                    &alone[static_cast<std::size_t>(row) * kHidden], kHidden, one);
      }
    }
    for (std::size_t threads : {1, 2, 4}) {
      ThreadPool pool(threads);
      Guarded y(alone.size());
      experts.run(batch.rows(GetParam(), 0, batch.num_rows), batch.groups, y.data(), kHidden, pool);
      EXPECT_TRUE(y.intact());
      for (const ExpertRows& group : batch.groups) {
        for (std::int32_t row = group.first; row < group.first + group.count; row += 20) {
          const auto at = static_cast<std::size_t>(row) * kHidden;
          ASSERT_EQ(std::memcmp(&y.span()[at], &alone[at], kHidden * sizeof(float)), 0)
              << dtype_name(dtype) << " threads=" << threads << " row " << row;
        }
      }
    }
  }
}

TEST_P(ExpertOf, AGroupedBatchMatchesTheDefinition) {
  const std::int32_t counts[] = {2, 0, 5, 50};
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    for (auto [hidden, intermediate] : {std::pair{32, 48}, {33, 17}, {1, 1}, {7, 65}}) {
      const Batch batch(dtype, hidden, intermediate, counts);
      std::vector<double> expected;
      std::vector<double> bound;
      for (const ExpertRows& group : batch.groups) {
        for (std::int32_t row = group.first; row < group.first + group.count; ++row) {
          expect_row(*group.weights, &batch.x[static_cast<std::size_t>(row) * hidden], expected,
                     bound);
        }
      }
      ThreadPool pool(2);
      GroupedExperts experts;
      Guarded y(expected.size());
      experts.run(batch.rows(GetParam(), 0, batch.num_rows), batch.groups, y.data(), hidden, pool);
      EXPECT_TRUE(within(expected, y.span(), bound))
          << dtype_name(dtype) << " hidden=" << hidden << " intermediate=" << intermediate;
      EXPECT_TRUE(y.intact());
    }
  }
}

TEST_P(ExpertOf, RowsOfYMayLieApart) {
  constexpr std::int32_t kHidden = 40;
  constexpr std::size_t kStride = 56;
  const std::int32_t counts[] = {3, 70};
  const Batch batch(DType::kBF16, kHidden, 33, counts);
  const auto rows = static_cast<std::size_t>(batch.num_rows);
  ThreadPool pool(2);
  GroupedExperts experts;
  std::vector<float> close(rows * kHidden), apart(rows * kStride, -7.0f);
  experts.run(batch.rows(GetParam(), 0, batch.num_rows), batch.groups, close.data(), kHidden, pool);
  experts.run(batch.rows(GetParam(), 0, batch.num_rows), batch.groups, apart.data(), kStride, pool);
  for (std::size_t row = 0; row < rows; ++row) {
    ASSERT_EQ(std::memcmp(&apart[row * kStride], &close[row * kHidden], kHidden * sizeof(float)),
              0);
    for (std::size_t gap = kHidden; gap < kStride; ++gap)
      ASSERT_EQ(apart[row * kStride + gap], -7.0f) << "between rows";
  }
}

TEST_P(ExpertOf, AnEmptyBatchWritesNothing) {
  const std::int32_t counts[] = {0};
  const Batch batch(DType::kBF16, 32, 48, counts);
  ThreadPool pool(2);
  GroupedExperts experts;
  experts.run(batch.rows(GetParam(), 0, 0), batch.groups, nullptr, 32, pool);
}

struct Activations {
  Variant variant;
  SiluMulFn* silu_mul;
  ExpFn* exp_shifted;
};
const Activations kActivations[] = {{Variant::kPlain, plain::silu_mul, plain::exp_shifted},
                                    {Variant::kAvx2, avx2::silu_mul, avx2::exp_shifted},
                                    {Variant::kAvx512, avx512::silu_mul, avx512::exp_shifted}};

TEST(Exponential, IsWithinTwoUlpAndRightAtTheEnds) {
  for (const Activations& of : kActivations) {
    if (!variant_supported(of.variant)) continue;
    std::vector<float> z;
    for (double x = -87.3; x < 88.72; x += 0.000737) z.push_back(static_cast<float>(x));
    std::vector<double> e(z.size());
    of.exp_shifted(z.data(), 0, z.size(), e.data());
    double worst = 0;
    for (std::size_t i = 0; i < z.size(); ++i) {
      const double expected = std::exp(static_cast<double>(z[i]));
      const double ulp = std::ldexp(1.0, std::ilogb(expected) - 23);
      worst = std::max(worst, std::abs(e[i] - expected) / ulp);
    }
    EXPECT_LE(worst, 2.0) << variant_name(of.variant);
    RecordProperty(std::string(variant_name(of.variant)) + "_worst_ulp", std::to_string(worst));

    const std::vector<float> ends = {0, -0.0f, -200, -INFINITY, 200, INFINITY, NAN, -100};
    e.assign(ends.size(), -1);
    of.exp_shifted(ends.data(), 0, ends.size(), e.data());
    EXPECT_EQ(e[0], 1);
    EXPECT_EQ(e[1], 1);
    EXPECT_EQ(e[2], 0);
    EXPECT_EQ(e[3], 0);
    EXPECT_EQ(e[4], INFINITY);
    EXPECT_EQ(e[5], INFINITY);
    EXPECT_TRUE(std::isnan(e[6]));
    EXPECT_NEAR(e[7], std::exp(-100.0), 0x1p-149);
  }
}

TEST(SiluMul, AnElementHasTheSameBitsAtEveryPlace) {
  for (const Activations& of : kActivations) {
    if (!variant_supported(of.variant)) continue;
    const std::vector<float> gate = random_floats(40, 8, 20);
    const std::vector<float> up = random_floats(40, 9);
    std::vector<float> all = gate;
    of.silu_mul(all.data(), up.data(), all.size());
    for (std::size_t first = 0; first < gate.size(); ++first) {
      for (std::size_t size = 1; first + size <= gate.size(); ++size) {
        Guarded part(size);
        std::copy_n(gate.data() + first, size, part.data());
        of.silu_mul(part.data(), up.data() + first, size);
        ASSERT_EQ(std::memcmp(part.data(), &all[first], size * sizeof(float)), 0);
        ASSERT_TRUE(part.intact());
      }
    }
  }
}

TEST(SiluMul, IsZeroFarLeftAndTheIdentityFarRight) {
  for (const Activations& of : kActivations) {
    if (!variant_supported(of.variant)) continue;
    std::vector<float> gate = {-1000, 1000, 0};
    const std::vector<float> up = {1, 2, 3};
    of.silu_mul(gate.data(), up.data(), gate.size());
    EXPECT_EQ(gate[0], 0);
    EXPECT_EQ(gate[1], 2000);
    EXPECT_EQ(gate[2], 0);
  }
}

}  // namespace
}  // namespace moiety::kernels
