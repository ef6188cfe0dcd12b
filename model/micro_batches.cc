#include "model/micro_batches.h"

namespace moiety {
namespace {

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

HalvedChunks halve(std::span<const SequenceChunk> chunks) {
  std::size_t rows = 0;
  for (const SequenceChunk& chunk : chunks) rows += chunk.tokens.size();
  std::size_t left = rows / 2;  // of the first half
  HalvedChunks halves;
  for (const SequenceChunk& chunk : chunks) {
    const std::size_t count = chunk.tokens.size();
    if (left == 0) {
      halves.second.push_back(chunk);
    } else if (count <= left) {
      halves.first.push_back(chunk);
      left -= count;
    } else {
      SequenceChunk before = chunk, after = chunk;
      before.tokens = chunk.tokens.first(left);
      if (chunk.logits == SequenceChunk::Logits::kLast)
        before.logits = SequenceChunk::Logits::kNone;
      after.tokens = chunk.tokens.subspan(left);
      after.start += static_cast<std::int32_t>(left);
      halves.first.push_back(before);
      halves.second.push_back(after);
      left = 0;
    }
  }
  return halves;
}

StepResult join(StepResult first, const StepResult& second) {
  append(first.logits, second.logits);
  append(first.masked_mass, second.masked_mass);
  append(first.failed, second.failed);
  for (std::size_t layer = 0; layer < first.topk_ids.size(); ++layer) {
    append(first.topk_ids[layer], second.topk_ids[layer]);
    append(first.gate_logits[layer], second.gate_logits[layer]);
  }
  return first;
}

}  // namespace moiety
