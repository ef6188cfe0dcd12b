#include <algorithm>
#include <cmath>
#include <cstdio>

#include "checkpoint/checkpoint.h"
#include "cli/model_size.h"
#include "cli/offline.h"
#include "common/file.h"
#include "model/chat_template.h"
#include "model/kv_cache.h"
#include "model/tokenizer.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

struct InspectFlags {
  std::string model;
  DType dtype = DType::kBF16;
  std::optional<DType> expert_dtype;
  bool json = false;
};

/// What differs from layer to layer, as a range.
struct Range {
  std::int32_t least = INT32_MAX, most = 0;
  void add(std::int32_t value) {
    least = std::min(least, value);
    most = std::max(most, value);
  }
  std::string text() const {
    return least == most ? std::to_string(most)
                         : std::to_string(least) + " to " + std::to_string(most);
  }
};

struct Experts {
  Range per_layer, shared, top_k, width;
  std::int32_t dense_layers = 0;
  std::int32_t shared_module_width = 0;
  std::int32_t window = 0, layers_with_window = 0;
};

Experts experts_of(const Architecture& arch) {
  Experts experts;
  for (const LayerDescription& layer : arch.layers) {
    if (layer.window > 0) {
      ++experts.layers_with_window;
      experts.window = layer.window;
    }
    if (layer.is_dense()) {
      ++experts.dense_layers;
      continue;
    }
    experts.per_layer.add(layer.moe.num_routed + layer.moe.num_shared);
    experts.shared.add(layer.moe.num_shared);
    experts.top_k.add(layer.moe.top_k);
    experts.width.add(layer.moe.intermediate);
    experts.shared_module_width =
        std::max(experts.shared_module_width, layer.moe.shared_module_width);
  }
  return experts;
}

/// How far a rotary embedding stretches positions: 1 for the default kind.
double rope_stretch(const RopeDescription& rope, std::int32_t head_dim) {
  double most = 1;
  for (std::size_t i = 0; i < rope.frequencies.size(); ++i) {
    const double plain = std::pow(rope.theta, -2.0 * static_cast<double>(i) / head_dim);
    most = std::max(most, plain / rope.frequencies[i]);
  }
  return most < 1.001 ? 1 : most;
}

std::string_view qk_norm_name(QkNorm norm) {
  switch (norm) {
    case QkNorm::kNone:
      return "none";
    case QkNorm::kWholeProjection:
      return "whole projection";
    case QkNorm::kPerHead:
      return "per head";
  }
  return "?";
}

/// Facts of the tokenizer, or why it cannot be used; null without one.
json::value tokenizer_facts(const Checkpoint& checkpoint) {
  if (!entry_exists(checkpoint.folder() / "tokenizer.json")) return nullptr;
  const auto tokenizer = Tokenizer::load(checkpoint.folder());
  if (!tokenizer) return json::object{{"error", tokenizer.error().message}};
  std::int32_t tokens = 0, special = 0;
  for (std::int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
    tokens += !tokenizer->token_bytes(id).empty();
    special += tokenizer->is_special(id);
  }
  json::array ends;
  for (const std::int32_t id : checkpoint.architecture().eos_ids) {
    ends.push_back(json::object{{"id", id}, {"text", tokenizer->decode({id}, false)}});
  }
  return json::object{{"tokens", tokens}, {"special_tokens", special}, {"end_of_text", ends}};
}

/// True or false, or why there is one that cannot be used.
json::value chat_template_facts(const Checkpoint& checkpoint) {
  const auto chat_template = ChatTemplate::load(checkpoint.folder());
  if (!chat_template) return json::object{{"error", chat_template.error().message}};
  return chat_template->has_value();
}

json::object facts_of(const Checkpoint& checkpoint, const InspectFlags& flags) {
  const Architecture& arch = checkpoint.architecture();
  const Experts experts = experts_of(arch);
  const ModelSize size(arch, flags.dtype, flags.expert_dtype.value_or(flags.dtype));
  json::array sizes;
  for (const std::int32_t keep : size.kept_counts()) {
    sizes.push_back(json::object{{"keep", keep},
                                 {"parameters", size.parameters(keep)},
                                 {"dense_bytes", size.dense_bytes()},
                                 {"expert_bytes", size.expert_bytes(keep)},
                                 {"bytes", size.dense_bytes() + size.expert_bytes(keep)}});
  }
  json::array ropes;
  for (const RopeDescription& rope : arch.ropes) {
    ropes.push_back(json::object{{"theta", rope.theta},
                                 {"stretch", rope_stretch(rope, arch.head_dim)},
                                 {"attention_factor", rope.attention_factor}});
  }
  const std::size_t kv_bytes =
      KvCache::block_bytes(arch, flags.dtype) / static_cast<std::size_t>(kernels::kKvBlockSize);
  return json::object{{"architecture", arch.name},
                      {"fingerprint", checkpoint.fingerprint()},
                      {"layers", arch.num_layers()},
                      {"dense_layers", experts.dense_layers},
                      {"hidden_size", arch.hidden_size},
                      {"heads", arch.num_heads},
                      {"kv_heads", arch.num_kv_heads},
                      {"head_dim", arch.head_dim},
                      {"qk_norm", qk_norm_name(arch.qk_norm)},
                      {"rope", ropes},
                      {"window", experts.window > 0 ? json::value(experts.window) : nullptr},
                      {"layers_with_window", experts.layers_with_window},
                      {"vocab_size", arch.vocab_size},
                      {"tied_embeddings", arch.tie_embeddings},
                      {"context", arch.max_positions},
                      {"experts_per_layer", experts.per_layer.most},
                      {"experts_per_layer_min", experts.per_layer.least},
                      {"shared_experts", experts.shared.most},
                      {"shared_module_width", experts.shared_module_width},
                      {"routed_experts_per_token", experts.top_k.most},
                      {"expert_width", experts.width.most},
                      {"weights_dtype", dtype_name(arch.weights_dtype)},
                      {"physically_pruned", arch.physically_pruned},
                      {"parameters", size.parameters(0)},
                      {"active_parameters", size.active_parameters()},
                      {"dtype", dtype_name(flags.dtype)},
                      {"expert_dtype", dtype_name(flags.expert_dtype.value_or(flags.dtype))},
                      {"kv_bytes_per_token", kv_bytes},
                      {"tokenizer", tokenizer_facts(checkpoint)},
                      {"chat_template", chat_template_facts(checkpoint)},
                      {"bytes_by_kept_experts", sizes}};
}

double number(const json::value& value) { return value.to_number<double>(); }
std::string text(const json::value& value) { return std::string(value.as_string()); }

std::string billions(double count) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, count < 1e9 ? "%.2f M" : "%.2f B",
                count / (count < 1e9 ? 1e6 : 1e9));
  return buffer;
}

std::string describe_tokenizer(const json::value& facts) {
  if (facts.is_null()) return "none (token ids only)";
  if (facts.get_object().contains("error")) return "cannot be used: " + text(facts.at("error"));
  std::string line = json::serialize(facts.at("tokens")) + " tokens, " +
                     json::serialize(facts.at("special_tokens")) + " special; ends of text";
  for (const json::value& end : facts.at("end_of_text").as_array())
    line += " " + text(end.at("text")) + " (" + json::serialize(end.at("id")) + ")";
  return line;
}

std::string describe_chat_template(const json::value& facts) {
  if (facts.is_bool()) return facts.get_bool() ? "yes" : "none";
  return "cannot be used: " + text(facts.at("error"));
}

void print_facts(const Architecture& arch, const json::object& facts) {
  const Experts experts = experts_of(arch);
  std::printf("architecture      %s%s\n", arch.name.c_str(),
              arch.physically_pruned ? " (physically pruned)" : "");
  std::printf("fingerprint       %s\n", text(facts.at("fingerprint")).c_str());
  std::printf("layers            %d, hidden %d", arch.num_layers(), arch.hidden_size);
  if (experts.dense_layers > 0) std::printf(", %d without experts", experts.dense_layers);
  std::printf("\nattention         %d heads (%d for keys and values) of %d", arch.num_heads,
              arch.num_kv_heads, arch.head_dim);
  if (arch.qk_norm != QkNorm::kNone)
    std::printf(", q and k normed (%s)", std::string(qk_norm_name(arch.qk_norm)).c_str());
  if (experts.layers_with_window > 0)
    std::printf(", window of %d in %d layers", experts.window, experts.layers_with_window);
  for (const json::value& rope : facts.at("rope").as_array()) {
    std::printf(", RoPE theta %g", number(rope.at("theta")));
    if (number(rope.at("stretch")) > 1)
      std::printf(" stretched %.3g times", number(rope.at("stretch")));
  }
  std::printf("\nvocabulary        %d%s, context %d tokens\n", arch.vocab_size,
              arch.tie_embeddings ? " (embeddings tied)" : "", arch.max_positions);
  std::printf("experts           %s per layer (%s shared), %s routed ones per token, width %s\n",
              experts.per_layer.text().c_str(), experts.shared.text().c_str(),
              experts.top_k.text().c_str(), experts.width.text().c_str());
  if (experts.shared_module_width > 0)
    std::printf("shared experts    a module of their own, width %d\n", experts.shared_module_width);
  std::printf("weights           %s in the files\n", text(facts.at("weights_dtype")).c_str());
  std::printf("parameters        %s, %s active per token\n",
              billions(number(facts.at("parameters"))).c_str(),
              billions(number(facts.at("active_parameters"))).c_str());
  std::printf("KV cache          %s per token in %s\n",
              human_bytes(number(facts.at("kv_bytes_per_token"))).c_str(),
              text(facts.at("dtype")).c_str());
  std::printf("tokenizer         %s\n", describe_tokenizer(facts.at("tokenizer")).c_str());
  std::printf("chat template     %s\n", describe_chat_template(facts.at("chat_template")).c_str());
  std::printf("\n%8s  %12s  %12s  %12s  %12s\n", "kept per", "parameters", "dense part", "experts",
              "in all");
  std::printf("%8s  %12s  %12s  %12s  %12s\n", "layer", "", text(facts.at("dtype")).c_str(),
              text(facts.at("expert_dtype")).c_str(), "");
  for (const json::value& size : facts.at("bytes_by_kept_experts").as_array()) {
    std::printf("%8.0f  %12s  %12s  %12s  %12s\n", number(size.at("keep")),
                billions(number(size.at("parameters"))).c_str(),
                human_bytes(number(size.at("dense_bytes"))).c_str(),
                human_bytes(number(size.at("expert_bytes"))).c_str(),
                human_bytes(number(size.at("bytes"))).c_str());
  }
}

Result<void> run_inspect(const InspectFlags& flags) {
  MOIETY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(flags.model));
  const json::object facts = facts_of(checkpoint, flags);
  if (flags.json) {
    print_json(facts);
  } else {
    print_facts(checkpoint.architecture(), facts);
  }
  return {};
}

}  // namespace

void add_inspect(CLI::App& app, Chosen& chosen) {
  CLI::App* command =
      app.add_subcommand("inspect", "Say what a checkpoint is, and how large whole and in part");
  auto flags = std::make_shared<InspectFlags>();
  command->add_option("model,-m,--model", flags->model, "Checkpoint folder")->required();
  add_dtype_flags(*command, flags->dtype, flags->expert_dtype);
  command->add_flag("--json", flags->json, "Print JSON");
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_inspect(*flags); }; });
}

}  // namespace moiety::cli
