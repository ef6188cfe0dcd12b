#pragma once

#include <cstdint>

#include "checkpoint/architecture.h"
#include "common/dtype.h"

namespace moiety {

/// Bytes of one routed expert of `layer` where it is held, packed as `dtype` (F32, BF16 or I8):
/// with padding and scales. Capacities, plans and ExpertStore count with this. 0 for a dense layer.
std::uint64_t packed_expert_bytes(const Architecture& architecture,
                                  std::int32_t layer,
                                  DType dtype);

}  // namespace moiety
