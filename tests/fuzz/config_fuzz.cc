// config.json and generation_config.json from outside.
#include <cstddef>
#include <cstdint>

#include "checkpoint/architecture.h"
#include "common/check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto model = moiety::parse_architecture(text, false);
  if (!model) {
    MOIETY_CHECK(!model.error().message.empty(), "refused without a reason");
    moiety::Architecture other;
    other.vocab_size = 100;
    (void)moiety::add_generation_config(text, other);
    return 0;
  }
  // What was accepted must be safe to build a forward pass on.
  MOIETY_CHECK(model->num_layers() > 0 && model->head_dim % 2 == 0, "accepted nonsense");
  MOIETY_CHECK(model->num_heads % model->num_kv_heads == 0, "accepted nonsense");
  for (const moiety::LayerDescription& layer : model->layers) {
    MOIETY_CHECK(layer.moe.top_k > 0 && layer.moe.top_k <= layer.moe.num_routed, "bad top_k");
    MOIETY_CHECK(layer.moe.gate_rows == layer.moe.num_routed + layer.moe.num_shared, "bad gate");
  }
  return 0;
}
