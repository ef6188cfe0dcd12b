// Compiled with -mavx2: nothing here may run before the machine was asked whether it has that.
#include "model/softmax_blocks.h"

namespace moiety {
namespace {
#include "model/softmax_blocks_body.h"
}  // namespace

const SoftmaxBlocks* softmax_blocks_avx2() {
  return __builtin_cpu_supports("avx2") ? &kTable : nullptr;
}

}  // namespace moiety
