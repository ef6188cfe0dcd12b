// Models some of whose layers have no experts: from a profile to a subset to a cluster.
#include "kernels/gate.h"
#include "planner/profile.h"
#include "tests/golden/loopback_cluster.h"

namespace moiety::testing {
namespace {

class DenseLayers : public ::testing::TestWithParam<const char*> {
 protected:
  DenseLayers()
      : embedded_(source_path(fixture_folder(GetParam())),
                  DType::kBF16,
                  must(kernels::choose_variant("auto"))) {
    for (std::int32_t i = 0; i < 40; ++i) tokens_.push_back((7 + i * 23) % 64);
  }

  StepResult run(MoeBackend& backend, const GateMask* mask) {
    KvCache kv(embedded_.arch(), DType::kBF16, KvCache::blocks_for(std::ssize(tokens_)));
    const auto blocks = must(kv.allocate(kv.num_blocks()));
    StepOptions options;
    options.keep_gate_logits = true;
    const SequenceChunk chunk{tokens_, 0, blocks, mask, SequenceChunk::Logits::kAll};
    return embedded_.model->forward({&chunk, 1}, kv, backend, options);
  }

  /// The share of the softmax over one layer's gate logits that falls on each expert, per row.
  std::vector<std::vector<float>> gate_shares(const StepResult& result, std::size_t layer) const {
    const auto num_routed = static_cast<std::size_t>(embedded_.arch().layers[layer].moe.num_routed);
    std::vector<std::vector<float>> shares(tokens_.size(), std::vector<float>(num_routed));
    for (std::size_t row = 0; row < tokens_.size(); ++row) {
      kernels::softmax(std::span(result.gate_logits[layer]).subspan(row * num_routed, num_routed),
                       shares[row]);
    }
    return shares;
  }

  /// A profile of one domain, through its file format.
  planner::Profile profile(const StepResult& result) const {
    planner::Profile profile;
    profile.checkpoint = embedded_.shape.fingerprint;
    profile.layers = embedded_.shape.layers;
    planner::DomainProfile domain;
    domain.tokens = std::ssize(tokens_);
    domain.text_sha256 = "none";
    for (std::size_t layer = 0; layer < embedded_.arch().layers.size(); ++layer) {
      if (embedded_.arch().layers[layer].is_dense()) {
        domain.mean_prob.emplace_back(std::nullopt);
        continue;
      }
      const auto shares = gate_shares(result, layer);
      std::vector<double> mean(shares[0].size());
      for (const auto& row : shares) {
        for (std::size_t i = 0; i < mean.size(); ++i) {
          mean[i] += row[i] / static_cast<double>(shares.size());
        }
      }
      domain.mean_prob.emplace_back(std::move(mean));
    }
    profile.domains["test"] = std::move(domain);
    return must(planner::parse_profile(planner::profile_to_json(profile)));
  }

  /// The subset that keeps half of the experts, through its file format.
  KeptExperts half(const StepResult& result) const {
    const planner::Subset subset = must(planner::select_experts(
        profile(result), embedded_.shape, {"test"}, embedded_.arch().max_routed() / 2));
    return must(planner::resolve_subset(
        must(planner::parse_subset(planner::subset_to_json(subset))), embedded_.shape));
  }

  Embedded embedded_;
  std::vector<std::int32_t> tokens_;
};

TEST_P(DenseLayers, AreThere) {
  EXPECT_LT(embedded_.arch().num_moe_layers(), embedded_.arch().num_layers());
  EXPECT_GT(embedded_.arch().num_moe_layers(), 0);
}

TEST_P(DenseLayers, HaveNoGateAndNoChoice) {
  const StepResult result = run(*embedded_.experts, nullptr);
  for (std::size_t layer = 0; layer < embedded_.arch().layers.size(); ++layer) {
    const bool dense = embedded_.arch().layers[layer].is_dense();
    EXPECT_EQ(result.topk_ids[layer].empty(), dense) << layer;
    EXPECT_EQ(result.gate_logits[layer].empty(), dense) << layer;
  }
}

TEST_P(DenseLayers, AreNoPartOfTheMaskedMass) {
  const KeptExperts kept = half(run(*embedded_.experts, nullptr));
  const auto mask = make_gate_mask(kept, embedded_.arch());
  ASSERT_NE(mask, nullptr);
  const StepResult masked = run(*embedded_.experts, mask.get());
  std::vector<double> expected(tokens_.size());
  for (std::size_t layer = 0; layer < embedded_.arch().layers.size(); ++layer) {
    if (embedded_.arch().layers[layer].is_dense()) {
      EXPECT_TRUE(kept.layers[layer].empty()) << layer;
      continue;
    }
    const auto shares = gate_shares(masked, layer);
    for (std::size_t row = 0; row < tokens_.size(); ++row) {
      double left = 1;
      for (std::int32_t expert : kept.layers[layer]) {
        left -= shares[row][static_cast<std::size_t>(expert)];
      }
      expected[row] += left / embedded_.arch().num_moe_layers();
    }
  }
  for (std::size_t row = 0; row < tokens_.size(); ++row) {
    EXPECT_GT(masked.masked_mass[row], 0);
    EXPECT_NEAR(masked.masked_mass[row], expected[row], 1e-5) << row;
  }
}

TEST_P(DenseLayers, ASubsetOnAClusterEqualsEmbeddedMode) {
  EpochView view;
  view.deployments = {{"", planner::keep_all(embedded_.shape), false},
                      {"half", half(run(*embedded_.experts, nullptr)), false}};
  planner::PlaceOptions options;
  options.workers = {WorkerId{0}, WorkerId{1}, WorkerId{2}};
  options.capacity_per_layer = (embedded_.arch().max_routed() + 1) / 2;
  view.placement = must(planner::place_experts(embedded_.shape, view.deployments, options, {}));
  view.placement.epoch = Epoch{1};
  const auto mask = make_gate_mask(view.deployments[1].kept, embedded_.arch());
  LoopbackCluster cluster(embedded_, view, CombineMode::kPerExpert);
  cluster.apply();
  for (const GateMask* each :
       {static_cast<const GateMask*>(nullptr), static_cast<const GateMask*>(mask.get())}) {
    EXPECT_TRUE(same_bits(run(cluster.moe(), each).logits, run(*embedded_.experts, each).logits));
  }
  EXPECT_EQ(cluster.moe().stats().layers,
            2u * static_cast<std::uint64_t>(embedded_.arch().num_moe_layers()));
  EXPECT_EQ(cluster.bytes_read(), [&] {
    std::int64_t parameters = 0;
    for (std::int32_t layer = 0; layer < embedded_.arch().num_layers(); ++layer) {
      parameters += embedded_.arch().expert_parameters(layer) *
                    embedded_.arch().layers[static_cast<std::size_t>(layer)].moe.num_routed;
    }
    return static_cast<std::uint64_t>(parameters) * dtype_bytes(DType::kBF16);
  }()) << "these checkpoints are BF16";
}

INSTANTIATE_TEST_SUITE_P(
    Golden,
    DenseLayers,
    ::testing::Values("qwen2_moe", "deepseek", "small/qwen2_moe-sparse", "small/deepseek-norm"),
    [](const auto& info) {
      std::string name = info.param;
      for (char& c : name) c = c == '/' || c == '-' ? '_' : c;
      return name;
    });

}  // namespace
}  // namespace moiety::testing
