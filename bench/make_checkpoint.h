#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "common/dtype.h"
#include "common/result.h"
#include "common/thread_pool.h"

namespace moiety::bench {

struct MakeCheckpoint {
  std::filesystem::path folder;          ///< must not exist, or be empty
  std::string config_json;               ///< says the architecture and its sizes
  std::filesystem::path base_tokenizer;  ///< a tokenizer.json to resize; empty: none is written
  DType dtype = DType::kBF16;            ///< of the weights: F32, BF16 or F16
  std::uint64_t seed = 1;
  std::uint64_t shard_bytes = std::uint64_t{1} << 30;  ///< a tensor is never split
  /// Bytes written so far and in all; false stops with kCancelled.
  std::function<bool(std::uint64_t done, std::uint64_t total)> progress;
};

/// Bytes of the tensors that `config_json` asks for.
Result<std::uint64_t> checkpoint_bytes(const std::string& config_json, DType dtype);

/// Writes a checkpoint with random weights (weights_distribution): config.json,
/// generation_config.json, safetensors in shards with their index, tokenizer.json and
/// tokenizer_config.json. The same seed gives the same bytes. Everything is written beside `folder`
/// and appears under its name when complete; a failure leaves nothing. Returns the bytes of the
/// tensors.
///
/// kInvalidArgument: the configuration or the tokenizer. kFailedPrecondition: the folder is not
/// empty. kResourceExhausted: too little free space, checked before anything is written. kIo.
Result<std::uint64_t> make_checkpoint(const MakeCheckpoint& options, ThreadPool& pool);

}  // namespace moiety::bench
