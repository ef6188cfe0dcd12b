// config.json and generation_config.json from outside.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "checkpoint/architecture.h"
#include "common/check.h"

namespace {

void check_layer(const moiety::Architecture& model, const moiety::LayerDescription& layer) {
  const moiety::MoeDescription& moe = layer.moe;
  MOIETY_CHECK(layer.rope >= 0 && layer.rope < static_cast<std::int32_t>(model.ropes.size()),
               "a layer without RoPE");
  MOIETY_CHECK(layer.window >= 0, "a negative window");
  if (layer.is_dense()) {
    MOIETY_CHECK(layer.dense_width > 0, "a dense layer of no width");
    return;
  }
  MOIETY_CHECK(moe.top_k > 0 && moe.top_k <= moe.num_routed, "bad top_k");
  MOIETY_CHECK(moe.gate_rows >= moe.num_routed && moe.intermediate > 0, "bad gate or experts");
}

}  // namespace

// What was accepted must be safe to build a forward pass on.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  moiety::Architecture other;
  other.vocab_size = 100;
  if (moiety::add_generation_config(text, other)) {
    for (const std::int32_t id : other.eos_ids) MOIETY_CHECK(id >= 0 && id < 100, "bad eos id");
  }
  for (const bool pruned : {false, true}) {
    const auto model = moiety::parse_architecture(text, pruned);
    if (!model) {
      MOIETY_CHECK(!model.error().message.empty(), "refused without a reason");
      continue;
    }
    MOIETY_CHECK(model->num_layers() > 0 && model->num_moe_layers() > 0, "no layers");
    MOIETY_CHECK(model->head_dim > 0 && model->head_dim % 2 == 0, "bad heads");
    MOIETY_CHECK(model->num_kv_heads > 0 && model->num_heads % model->num_kv_heads == 0,
                 "bad heads");
    for (const moiety::RopeDescription& rope : model->ropes) {
      MOIETY_CHECK(rope.frequencies.size() == static_cast<std::size_t>(model->head_dim) / 2,
                   "wrong number of frequencies");
      for (const float each : rope.frequencies) MOIETY_CHECK(std::isfinite(each), "bad frequency");
    }
    for (const moiety::LayerDescription& layer : model->layers) check_layer(*model, layer);
    for (const moiety::ExpectedTensor& tensor : expected_tensors(*model)) {
      for (const std::int64_t extent : tensor.shape) MOIETY_CHECK(extent > 0, "an empty tensor");
    }
  }
  return 0;
}
