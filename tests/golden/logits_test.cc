#include <cstdio>
#include <cstring>
#include <filesystem>

#include "common/file.h"
#include "tests/golden/golden_support.h"

namespace moiety::testing {
namespace {

using kernels::Variant;

struct NamedVariant {
  GoldenCase golden;
  Variant variant;
};

void PrintTo(const NamedVariant& each, std::ostream* out) {
  *out << each.golden.name << " " << kernels::variant_name(each.variant);
}

std::vector<NamedVariant> all_cases() {
  std::vector<NamedVariant> cases;
  for (const GoldenCase& golden : golden_cases()) {
    for (Variant variant : kernels::supported_variants()) cases.push_back({golden, variant});
  }
  return cases;
}

std::string case_name(const ::testing::TestParamInfo<NamedVariant>& info) {
  return info.param.golden.name + "_" + std::string(kernels::variant_name(info.param.variant));
}

// As a fraction of the expected logits' standard deviation.
constexpr double kF32Bound = 2e-5;

StepResult run_whole(Embedded& embedded,
                     std::span<const std::int32_t> ids,
                     SequenceChunk::Logits wanted,
                     const StepOptions& options) {
  KvCache kv(embedded.arch(), embedded.model->dtype(), KvCache::blocks_for(std::ssize(ids)));
  const auto blocks = must(kv.allocate(kv.num_blocks()));
  const SequenceChunk chunk{ids, 0, blocks, nullptr, wanted};
  return embedded.model->forward({&chunk, 1}, kv, *embedded.experts, options);
}

/// Logits of every position, with the gate's choices taken from `replay` unless it is empty.
std::vector<float> whole_sequence(Embedded& embedded,
                                  std::span<const std::int32_t> ids,
                                  const std::vector<std::vector<float>>& replay) {
  StepOptions options;
  if (!replay.empty()) options.replay_gate = &replay;
  return run_whole(embedded, ids, SequenceChunk::Logits::kAll, options).logits;
}

/// Gate logits of one sequence, per layer, as this engine computes them in fp32.
std::vector<std::vector<float>> own_gate_logits(const GoldenCase& golden,
                                                Variant variant,
                                                std::span<const std::int32_t> ids) {
  Embedded embedded(source_path(golden.folder), DType::kF32, variant);
  StepOptions options;
  options.keep_gate_logits = true;
  return run_whole(embedded, ids, SequenceChunk::Logits::kNone, options).gate_logits;
}

class Logits : public ::testing::TestWithParam<NamedVariant> {};

TEST_P(Logits, Fp32EqualsTheReferenceEngine) {
  const auto& [golden, variant] = GetParam();
  Embedded embedded(source_path(golden.folder), DType::kF32, variant);
  const Expected expected = load_expected(golden, embedded.arch());
  const auto length = static_cast<std::size_t>(expected.length);
  std::vector<Job> jobs;
  for (std::size_t row = 0; row < static_cast<std::size_t>(expected.batch); ++row) {
    const auto ids = std::span(expected.ids).subspan(row * length, length);
    jobs.push_back({{ids.begin(), ids.end()}});
  }
  std::vector<float> logits;
  for (const auto& row : run_jobs(*embedded.model, *embedded.experts, jobs)) {
    logits.insert(logits.end(), row.begin(), row.end());
  }
  const Deviation d = deviation(logits, expected.logits, expected.spread);
  std::printf("%s %s f32: worst %.2g, rms %.2g of the spread\n", golden.name.c_str(),
              std::string(kernels::variant_name(variant)).c_str(), d.worst, d.rms);
  EXPECT_LE(d.worst, kF32Bound);
}

TEST_P(Logits, Bf16WithReplayedGateStaysWithinItsBound) {
  const auto& [golden, variant] = GetParam();
  Embedded embedded(source_path(golden.folder), DType::kBF16, variant);
  const Expected expected = load_expected(golden, embedded.arch());
  const auto length = static_cast<std::size_t>(expected.length);
  std::vector<float> logits;
  for (std::size_t row = 0; row < static_cast<std::size_t>(expected.batch); ++row) {
    const auto ids = std::span(expected.ids).subspan(row * length, length);
    std::vector<std::vector<float>> replay;
    for (std::size_t layer = 0; layer < embedded.arch().layers.size(); ++layer) {
      const std::size_t stride =
          length * static_cast<std::size_t>(embedded.arch().layers[layer].moe.gate_rows);
      if (expected.gate_logits[layer].empty()) {
        replay.emplace_back();
        continue;
      }
      const auto part = std::span(expected.gate_logits[layer]).subspan(row * stride, stride);
      replay.emplace_back(part.begin(), part.end());
    }
    // Granite's fixture has no gate logits; its fp32 logits are compared by the test above.
    if (std::all_of(replay.begin(), replay.end(), [](const auto& each) { return each.empty(); })) {
      replay = own_gate_logits(golden, variant, ids);
    }
    const auto row_logits = whole_sequence(embedded, ids, replay);
    logits.insert(logits.end(), row_logits.begin(), row_logits.end());
  }
  const Deviation d = deviation(logits, expected.logits, expected.spread);
  std::printf("%s %s bf16: worst %.3f, rms %.4f of the spread\n", golden.name.c_str(),
              std::string(kernels::variant_name(variant)).c_str(), d.worst, d.rms);
  EXPECT_LE(d.worst, golden.bf16_worst);
  EXPECT_LE(d.rms, golden.bf16_rms);
}

TEST_P(Logits, TeacherForcedGreedyChoiceIsTheSameWhereTheMarginAllowsIt) {
  const auto& [golden, variant] = GetParam();
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Embedded embedded(source_path(golden.folder), dtype, variant);
    const Expected expected = load_expected(golden, embedded.arch());
    const double bound = expected.spread * (dtype == DType::kF32 ? kF32Bound : golden.bf16_worst);
    const auto length = static_cast<std::size_t>(expected.length);
    const auto vocab = static_cast<std::size_t>(embedded.arch().vocab_size);
    int compared = 0;
    for (std::size_t row = 0; row < static_cast<std::size_t>(expected.batch); ++row) {
      const auto ids = std::span(expected.ids).subspan(row * length, length);
      Job job{{ids.begin(), ids.end()}};
      for (std::size_t i = 0; i < 32; ++i) {
        job.tokens.push_back(static_cast<std::int32_t>(expected.greedy_ids[row * 32 + i]));
      }
      // In BF16 a near tie of the gate may fall the other way, and the rest of the row with it.
      std::vector<std::vector<float>> replay;
      if (dtype == DType::kBF16) replay = own_gate_logits(golden, variant, job.tokens);
      const auto logits = whole_sequence(embedded, job.tokens, replay);
      for (std::size_t i = 0; i < 32; ++i) {
        if (expected.greedy_margin[row * 32 + i] <= 2 * bound) continue;
        const auto begin = logits.begin() + static_cast<std::ptrdiff_t>((length - 1 + i) * vocab);
        const auto best =
            std::max_element(begin, begin + static_cast<std::ptrdiff_t>(vocab)) - begin;
        EXPECT_EQ(best, expected.greedy_ids[row * 32 + i]) << "row " << row << ", step " << i;
        ++compared;
      }
    }
    EXPECT_GT(compared, 8) << "too few margins exceed the bound for this test to say anything";
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Logits, ::testing::ValuesIn(all_cases()), case_name);

/// Copies a checkpoint folder's tensors rounded to BF16, as if it had been saved so.
std::filesystem::path bf16_copy(const std::string& folder, const std::string& name) {
  const std::filesystem::path copy = std::filesystem::path(::testing::TempDir()) / name;
  std::filesystem::create_directories(copy);
  const SafetensorsSet set = must(SafetensorsSet::open_folder(folder));
  SafetensorsWriter writer;
  for (const auto& [tensor, info] : set.tensors()) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(info.num_elements()) * 2);
    const std::vector<float> values = must(set.read_floats(tensor));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const bf16 half = float_to_bf16(values[i]);
      std::memcpy(&bytes[2 * i], &half, 2);
    }
    writer.add(tensor, DType::kBF16, info.shape, std::move(bytes));
  }
  EXPECT_TRUE(writer.write(copy / "model.safetensors"));
  std::filesystem::copy_file(folder + "/config.json", copy / "config.json",
                             std::filesystem::copy_options::overwrite_existing);
  return copy;
}

/// The subset that a pruning_metadata.json describes, on the unpruned checkpoint.
KeptExperts pruned_kept(const std::string& folder, const planner::ModelShape& shape) {
  const std::string text = must(read_file(folder + "/pruning_metadata.json"));
  // The metadata's experts_kept_per_layer is what a subset file has under the same name.
  const std::size_t begin = text.find('[', text.find("experts_kept_per_layer"));
  std::size_t depth = 0, stop = begin;
  do {
    depth += text[stop] == '[' ? 1 : 0;
    depth -= text[stop] == ']' ? 1 : 0;
    ++stop;
  } while (depth > 0);
  const std::string subset = R"({"format": "moiety.subset/1", "checkpoint": ")" +
                             shape.fingerprint +
                             R"(", "domains": [], "method": "test", "experts_kept_per_layer": )" +
                             text.substr(begin, stop - begin) + "}";
  return must(planner::resolve_subset(must(planner::parse_subset(subset)), shape));
}

class MaskEqualsAbsence : public ::testing::TestWithParam<Variant> {};

void compare_mask_with_absence(const std::string& full_folder,
                               const std::string& pruned_folder,
                               DType dtype,
                               Variant variant) {
  Embedded full(full_folder, dtype, variant);
  Embedded pruned(pruned_folder, dtype, variant);
  const auto mask = make_gate_mask(pruned_kept(pruned_folder, full.shape), full.arch());
  ASSERT_NE(mask, nullptr);
  std::vector<std::int32_t> tokens;
  for (std::int32_t i = 0; i < 60; ++i) tokens.push_back(3 + (i * 37) % 380);
  const auto masked = run_jobs(*full.model, *full.experts, {{tokens, mask.get()}});
  const auto absent = run_jobs(*pruned.model, *pruned.experts, {{tokens}});
  EXPECT_TRUE(same_bits(masked[0], absent[0]));
  const auto unmasked = run_jobs(*full.model, *full.experts, {{tokens}});
  EXPECT_FALSE(same_bits(masked[0], unmasked[0]))
      << "the mask changes nothing: this test says nothing";
}

TEST_P(MaskEqualsAbsence, Fp32RaggedLayers) {
  compare_mask_with_absence(source_path("tests/golden/fixtures/emo"),
                            source_path("tests/golden/fixtures/emo-ragged"), DType::kF32,
                            GetParam());
}

TEST_P(MaskEqualsAbsence, Bf16) {
  compare_mask_with_absence(source_path("tests/golden/fixtures/emo"),
                            source_path("tests/golden/fixtures/emo-pruned"), DType::kBF16,
                            GetParam());
}

TEST_P(MaskEqualsAbsence, ServingInBf16EqualsSavingInBf16) {
  const std::string folder = source_path("tests/golden/fixtures/emo");
  const auto copy = bf16_copy(folder, "emo-bf16-" + std::string(kernels::variant_name(GetParam())));
  Embedded original(folder, DType::kBF16, GetParam());
  Embedded saved(copy.string(), DType::kBF16, GetParam());
  std::vector<std::int32_t> tokens;
  for (std::int32_t i = 0; i < 40; ++i) tokens.push_back(3 + (i * 53) % 380);
  EXPECT_TRUE(same_bits(run_jobs(*original.model, *original.experts, {{tokens}})[0],
                        run_jobs(*saved.model, *saved.experts, {{tokens}})[0]));
  std::filesystem::remove_all(copy);
}

INSTANTIATE_TEST_SUITE_P(Golden,
                         MaskEqualsAbsence,
                         ::testing::ValuesIn(kernels::supported_variants()),
                         [](const auto& info) {
                           return std::string(kernels::variant_name(info.param));
                         });

}  // namespace
}  // namespace moiety::testing
