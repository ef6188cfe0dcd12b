#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "model/model.h"

namespace moiety {

/// The rows of a step in two halves, one after the other; a chunk that lies across the middle is
/// cut. Both hold rows when there are two or more.
struct HalvedChunks {
  std::vector<SequenceChunk> first, second;
};
HalvedChunks halve(std::span<const SequenceChunk> chunks);

/// The result of a step from those of its halves.
StepResult join(StepResult first, const StepResult& second);

}  // namespace moiety
