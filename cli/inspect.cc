#include <algorithm>
#include <cstdio>

#include "checkpoint/checkpoint.h"
#include "cli/command.h"
#include "model/kv_cache.h"

namespace moiety::cli {
namespace {

struct InspectFlags {
  std::string model;
  bool json = false;
};

struct Counts {
  std::int64_t total = 0;
  std::int64_t active = 0;  // a token's share, embedding table left out
};

/// Parameters when every MoE layer keeps at most `keep` experts, shared ones included (0 = all).
Counts count_parameters(const Checkpoint& checkpoint, std::int32_t keep) {
  const Architecture& arch = checkpoint.architecture();
  Counts counts;
  std::int64_t all_experts = 0;
  for (const auto& [name, info] : checkpoint.tensors().tensors())
    counts.total += info.num_elements();
  const std::int64_t embedding = std::int64_t{arch.vocab_size} * arch.hidden_size;
  counts.active = counts.total - (arch.tie_embeddings ? 0 : embedding);
  for (std::int32_t layer = 0; layer < arch.num_layers(); ++layer) {
    const MoeDescription& moe = arch.layers[static_cast<std::size_t>(layer)].moe;
    const std::int64_t one = arch.expert_parameters(layer);
    all_experts = one * (moe.num_routed + moe.num_shared);
    const std::int32_t present = keep == 0 ? moe.num_routed + moe.num_shared
                                           : std::min(keep, moe.num_routed + moe.num_shared);
    counts.total += one * present - all_experts;
    counts.active += one * (moe.top_k + moe.num_shared) - all_experts;
  }
  return counts;
}

Result<void> run_inspect(const InspectFlags& flags) {
  MOIETY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(flags.model));
  const Architecture& arch = checkpoint.architecture();
  const Counts full = count_parameters(checkpoint, 0);
  const std::size_t kv_bytes =
      KvCache::block_bytes(arch, DType::kBF16) / static_cast<std::size_t>(kernels::kKvBlockSize);
  std::int32_t experts = 0, shared = 0, top_k = 0, least = INT32_MAX;
  for (const LayerDescription& layer : arch.layers) {
    experts = std::max(experts, layer.moe.num_routed + layer.moe.num_shared);
    shared = std::max(shared, layer.moe.num_shared);
    top_k = std::max(top_k, layer.moe.top_k);
    least = std::min(least, layer.moe.num_routed + layer.moe.num_shared);
  }
  boost::json::array sizes;
  for (std::int32_t keep = experts; keep >= top_k + shared; keep /= 2) {
    sizes.push_back(boost::json::object{
        {"keep", keep}, {"bytes_bf16", 2 * count_parameters(checkpoint, keep).total}});
  }
  if (flags.json) {
    print_json(boost::json::object{{"architecture", arch.name},
                                   {"fingerprint", checkpoint.fingerprint()},
                                   {"layers", arch.num_layers()},
                                   {"hidden_size", arch.hidden_size},
                                   {"heads", arch.num_heads},
                                   {"kv_heads", arch.num_kv_heads},
                                   {"head_dim", arch.head_dim},
                                   {"vocab_size", arch.vocab_size},
                                   {"context", arch.max_positions},
                                   {"experts_per_layer", experts},
                                   {"shared_experts", shared},
                                   {"routed_experts_per_token", top_k},
                                   {"weights_dtype", dtype_name(arch.weights_dtype)},
                                   {"physically_pruned", arch.physically_pruned},
                                   {"parameters", full.total},
                                   {"active_parameters", full.active},
                                   {"kv_bytes_per_token_bf16", kv_bytes},
                                   {"bytes_by_kept_experts", sizes}});
    return {};
  }
  std::printf("architecture      %s%s\n", arch.name.c_str(),
              arch.physically_pruned ? " (physically pruned)" : "");
  std::printf("fingerprint       %s\n", checkpoint.fingerprint().c_str());
  std::printf("layers            %d, hidden %d, %d heads (%d for keys and values) of %d\n",
              arch.num_layers(), arch.hidden_size, arch.num_heads, arch.num_kv_heads,
              arch.head_dim);
  std::printf("vocabulary        %d, context %d tokens\n", arch.vocab_size, arch.max_positions);
  std::printf("experts           %s%d per layer (%d shared), %d routed ones per token\n",
              least == experts ? "" : (std::to_string(least) + " to ").c_str(), experts, shared,
              top_k);
  std::printf("weights           %s in the files\n",
              std::string(dtype_name(arch.weights_dtype)).c_str());
  std::printf("parameters        %.2f M, %.2f M active per token\n",
              static_cast<double>(full.total) / 1e6, static_cast<double>(full.active) / 1e6);
  std::printf("KV cache          %s per token in bf16\n",
              human_bytes(static_cast<double>(kv_bytes)).c_str());
  std::printf("\n%8s  %12s\n", "kept", "bf16");
  for (const boost::json::value& size : sizes) {
    std::printf("%8lld  %12s\n", static_cast<long long>(size.at("keep").as_int64()),
                human_bytes(static_cast<double>(size.at("bytes_bf16").as_int64())).c_str());
  }
  return {};
}

}  // namespace

void add_inspect(CLI::App& app, Chosen& chosen) {
  CLI::App* command =
      app.add_subcommand("inspect", "Say what a checkpoint is, and how large whole and in part");
  auto flags = std::make_shared<InspectFlags>();
  command->add_option("model,-m,--model", flags->model, "Checkpoint folder")->required();
  command->add_flag("--json", flags->json, "Print JSON");
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_inspect(*flags); }; });
}

}  // namespace moiety::cli
