#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "experts/store.h"
#include "kernels/variant.h"
#include "model/model.h"
#include "router/embedded.h"

namespace moiety::testing {

/// A golden checkpoint: its folder, the file of expected tensors, and how far BF16 may be from them
/// when the gate's choices are replayed, in fractions of the logits' standard deviation. Most of
/// that is the rounding of the weights themselves, so it depends on the checkpoint;
/// docs/numerics-and-speed.md has what was measured.
struct GoldenCase {
  std::string name;
  std::string folder;
  std::string expected;
  double bf16_worst = 0.08;
  double bf16_rms = 0.013;
};

/// Names of folders in tests/golden/fixtures: one for each form of an architecture, and below
/// `small` one for each of its flags.
inline const char* const kFixtures[] = {
    "emo",
    "emo-pruned",
    "emo-ragged",
    "olmoe",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_moe-yarn",
    "granitemoe",
    "deepseek",
    "small/emo-yarn",
    "small/olmoe-clip",
    "small/mixtral-window",
    "small/mixtral-llama3",
    "small/qwen2_moe-sparse",
    "small/qwen2_moe-window",
    "small/qwen3_moe-mixed",
    "small/qwen3_moe-window",
    "small/granitemoe-bias",
    "small/deepseek-norm",
    "small/deepseek-plain",
};

inline std::string fixture_folder(const std::string& name) {
  return "tests/golden/fixtures/" + name;
}

/// Shown instead of the bytes of a test's parameter.
inline void PrintTo(const GoldenCase& golden, std::ostream* out) { *out << golden.name; }

inline std::vector<GoldenCase> golden_cases() {
  std::vector<GoldenCase> cases;
  for (const char* fixture : kFixtures) {
    GoldenCase each{fixture, fixture_folder(fixture),
                    fixture_folder(fixture) + "/expected.safetensors"};
    // Tests have names of letters, digits and underscores.
    std::replace(each.name.begin(), each.name.end(), '-', '_');
    std::replace(each.name.begin(), each.name.end(), '/', '_');
    if (each.name == "mixtral") each.bf16_worst = 0.1;
    if (each.name == "qwen3_moe_yarn") each.bf16_worst = 0.13, each.bf16_rms = 0.015;
    if (each.name == "small_qwen3_moe_mixed") each.bf16_worst = 0.13, each.bf16_rms = 0.016;
    if (each.name == "granitemoe") each.bf16_worst = 0.2, each.bf16_rms = 0.015;
    cases.push_back(std::move(each));
  }
  cases.push_back({"moiety_tiny_emo", "models/moiety-tiny-emo",
                   "tests/golden/moiety-tiny-emo.expected.safetensors"});
  return cases;
}

inline std::string source_path(const std::string& relative) {
  return std::string(MOIETY_SOURCE_DIR) + "/" + relative;
}

template <class T>
T must(Result<T> result) {
  if (!result) {
    ADD_FAILURE() << result.error().message;
    std::abort();
  }
  return std::move(*result);
}

/// The expected tensors of a case.
struct Expected {
  std::int64_t batch = 0, length = 0;
  std::vector<std::int32_t> ids;                // [batch, length]
  std::vector<float> logits;                    // [batch, length, vocab]
  double spread = 0;                            // standard deviation of the logits
  std::vector<std::vector<float>> gate_logits;  // per layer; empty for a dense one, or unknown
  std::vector<std::int64_t> greedy_ids;         // [batch, 32]
  std::vector<float> greedy_margin;
};

inline Expected load_expected(const GoldenCase& golden, const Architecture& arch) {
  const SafetensorsSet set = must(SafetensorsSet::open_file(source_path(golden.expected)));
  Expected expected;
  expected.batch = set.find("input_ids")->shape[0];
  expected.length = set.find("input_ids")->shape[1];
  for (std::int64_t id : must(set.read_integers("input_ids")))
    expected.ids.push_back(static_cast<std::int32_t>(id));
  expected.logits = must(set.read_floats("logits"));
  double sum = 0, squares = 0;
  for (float v : expected.logits) {
    sum += v;
    squares += double{v} * v;
  }
  const auto n = static_cast<double>(expected.logits.size());
  expected.spread = std::sqrt(squares / n - sum / n * sum / n);
  for (std::int32_t layer = 0; layer < arch.num_layers(); ++layer) {
    expected.gate_logits.emplace_back();
    const std::string name = "gate_logits." + std::to_string(layer);
    if (set.find(name) != nullptr) expected.gate_logits.back() = must(set.read_floats(name));
  }
  expected.greedy_ids = must(set.read_integers("greedy_ids"));
  expected.greedy_margin = must(set.read_floats("greedy_margin"));
  return expected;
}

/// A model with all its experts in this process.
struct Embedded {
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<ExpertStore> store;
  std::unique_ptr<Model> model;
  std::unique_ptr<LocalMoe> experts;
  planner::ModelShape shape;

  /// `expert_dtype` is the type of routed experts; the dense part is BF16 beside I8, else the same.
  Embedded(const std::string& folder,
           DType expert_dtype,
           kernels::Variant variant,
           std::size_t threads = 2) {
    const DType dtype = expert_dtype == DType::kI8 ? DType::kBF16 : expert_dtype;
    checkpoint = std::make_unique<Checkpoint>(must(Checkpoint::open(folder)));
    shape = model_shape(*checkpoint, expert_dtype);
    pool = std::make_unique<ThreadPool>(threads);
    store = std::make_unique<ExpertStore>(*checkpoint, expert_dtype);
    if (auto loaded = store->load(all_routed_experts(checkpoint->architecture())); !loaded) {
      ADD_FAILURE() << loaded.error().message;
    }
    model = must(Model::load(*checkpoint, dtype, variant, *pool));
    experts = std::make_unique<LocalMoe>(*store, variant, *pool);
  }
  const Architecture& arch() const { return checkpoint->architecture(); }
};

/// One sequence to run: its tokens, its mask, and into which chunk lengths to cut it (repeated as
/// needed).
struct Job {
  std::vector<std::int32_t> tokens;
  const GateMask* mask = nullptr;
  std::vector<std::int32_t> chunks = {1 << 20};
};

/// Logits of every position of every job, [job][length * vocab]. Step s takes each job's s-th
/// chunk, so jobs of different chunkings share batches. `before_step(s)` may be empty.
inline std::vector<std::vector<float>> run_jobs(
    const Model& model,
    MoeBackend& backend,
    const std::vector<Job>& jobs,
    const StepOptions& options = {},
    const std::function<void(std::size_t step)>& before_step = {}) {
  const Architecture& arch = model.architecture();
  const auto vocab = static_cast<std::size_t>(arch.vocab_size);
  std::int32_t blocks = 0;
  for (const Job& job : jobs)
    blocks += KvCache::blocks_for(static_cast<std::int64_t>(job.tokens.size()));
  KvCache kv(arch, model.dtype(), blocks);
  std::vector<std::vector<std::int32_t>> tables;
  for (const Job& job : jobs) {
    tables.push_back(
        must(kv.allocate(KvCache::blocks_for(static_cast<std::int64_t>(job.tokens.size())))));
  }
  std::vector<std::vector<float>> logits(jobs.size());
  std::vector<std::size_t> done(jobs.size(), 0);
  for (std::size_t step = 0;; ++step) {
    std::vector<SequenceChunk> chunks;
    std::vector<std::size_t> owner;
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      const Job& job = jobs[j];
      const auto want = static_cast<std::size_t>(job.chunks[step % job.chunks.size()]);
      const std::size_t count = std::min(want, job.tokens.size() - done[j]);
      if (count == 0) continue;
      chunks.push_back({std::span(job.tokens).subspan(done[j], count),
                        static_cast<std::int32_t>(done[j]), tables[j], job.mask,
                        SequenceChunk::Logits::kAll});
      owner.push_back(j);
      done[j] += count;
    }
    if (chunks.empty()) return logits;
    if (before_step) before_step(step);
    const StepResult result = model.forward(chunks, kv, backend, options);
    for (std::uint8_t failed : result.failed) EXPECT_EQ(failed, 0);
    std::size_t at = 0;
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      const std::size_t count = chunks[c].tokens.size() * vocab;
      logits[owner[c]].insert(logits[owner[c]].end(),
                              result.logits.begin() + static_cast<std::ptrdiff_t>(at),
                              result.logits.begin() + static_cast<std::ptrdiff_t>(at + count));
      at += count;
    }
  }
}

/// Random kept routed experts: `keep` per layer.
KeptExperts random_kept(const Architecture& arch, std::int32_t keep, std::uint64_t seed);

/// Largest and root-mean-square difference as fractions of `spread`.
struct Deviation {
  double worst = 0, rms = 0;
};
inline Deviation deviation(const std::vector<float>& actual,
                           const std::vector<float>& expected,
                           double spread) {
  EXPECT_EQ(actual.size(), expected.size());
  Deviation d;
  double squares = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(double{actual[i]} - expected[i]) / spread;
    d.worst = std::isnan(error) ? INFINITY : std::max(d.worst, error);
    squares += error * error;
  }
  d.rms = std::sqrt(squares / static_cast<double>(expected.size()));
  return d;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](float x, float y) {
           return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
         });
}

}  // namespace moiety::testing
