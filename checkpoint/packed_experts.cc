#include "checkpoint/packed_experts.h"

#include "common/check.h"
#include "common/packed_layout.h"

namespace moiety {

std::uint64_t packed_expert_bytes(const Architecture& architecture,
                                  std::int32_t layer,
                                  DType dtype) {
  MOIETY_CHECK(layer >= 0 && layer < architecture.num_layers(), "no such layer");
  const LayerDescription& description = architecture.layers[static_cast<std::size_t>(layer)];
  if (description.is_dense()) return 0;
  const std::int32_t hidden = architecture.hidden_size;
  const std::int32_t width = description.moe.intermediate;
  const std::uint64_t gate_or_up = packed_matrix_bytes(dtype, width, hidden);
  return 2 * gate_or_up + packed_matrix_bytes(dtype, hidden, width);
}

}  // namespace moiety
