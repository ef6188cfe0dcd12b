#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "checkpoint/architecture.h"
#include "common/dtype.h"

namespace moiety::bench {

/// Values of one random tensor: about normal around zero with standard deviation `std`, or all
/// `constant` where std is 0.
struct Distribution {
  float std = 0;
  float constant = 1;
};

/// How to fill a tensor of a checkpoint so that a model of any depth has finite logits, tokens of
/// one sequence stay different from each other, and experts are chosen evenly: norms 1,
/// embeddings 1, projections back into the residual stream smaller with depth, the rest 0.02 at a
/// width of 1024 (and in inverse proportion to its square root at others).
Distribution weights_distribution(const ExpectedTensor& tensor, std::int32_t num_layers);

/// Element i of tensor `key` is a function of (seed, key, i) alone, so that ranges may be made in
/// any order and by any thread. Writes elements [begin, begin + out.size() / dtype size) as F32,
/// BF16 or F16.
void fill_random(std::uint64_t seed,
                 std::uint64_t key,
                 const Distribution& distribution,
                 DType dtype,
                 std::uint64_t begin,
                 std::span<std::byte> out);

/// FNV-1a of a tensor's name, as a key.
std::uint64_t name_key(std::string_view name);

}  // namespace moiety::bench
