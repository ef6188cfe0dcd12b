#include "model/softmax_blocks.h"

namespace moiety {
namespace {
#include "model/softmax_blocks_body.h"
}  // namespace

const SoftmaxBlocks* softmax_blocks_plain() { return &kTable; }

const SoftmaxBlocks& softmax_blocks() {
  static const SoftmaxBlocks& chosen =
      softmax_blocks_avx2() != nullptr ? *softmax_blocks_avx2() : kTable;
  return chosen;
}

}  // namespace moiety
