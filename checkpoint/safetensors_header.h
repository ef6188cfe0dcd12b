#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "checkpoint/checkpoint.h"

namespace moiety {

/// Headers above this are refused, as the format's own library does.
inline constexpr std::uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsHeader {
  std::map<std::string, TensorInfo, std::less<>> tensors;
  std::map<std::string, OtherTensor, std::less<>> others;
};

/// Interprets the JSON header of one safetensors file. `data_begin` is where its data starts (8 +
/// the header's length), `file_bytes` the size of the file. The tensors must cover the data
/// completely: in offset order each begins where the one before it ends. Shape and byte count are
/// compared for every element type of the format; a name that is not one (of a later version) is
/// taken as it is.
///
/// `file` of the results is 0. kDataLoss: the file is too short for what the header says.
/// kInvalidArgument: anything else that is wrong, naming the tensor.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view header,
                                                   std::uint64_t data_begin,
                                                   std::uint64_t file_bytes);

/// Interprets model.safetensors.index.json: tensor name -> shard. A shard is a plain file name, so
/// that an index cannot lead out of its folder. kInvalidArgument names what is wrong.
Result<std::map<std::string, std::string, std::less<>>> parse_shard_index(std::string_view json);

}  // namespace moiety
