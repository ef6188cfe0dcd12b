// The JSON header of a safetensors file and the shard index from outside.
#include <cstddef>
#include <cstdint>

#include "checkpoint/safetensors_header.h"
#include "common/check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // The first byte chooses the size of the file's data, the rest is the header.
  if (size == 0) return 0;
  const std::string_view header(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::uint64_t data_begin = 8 + header.size();
  const std::uint64_t file_bytes = data_begin + data[0];
  const auto parsed = moiety::parse_safetensors_header(header, data_begin, file_bytes);
  if (parsed) {
    std::uint64_t covered = 0;
    const auto check = [&](const auto& tensors) {
      for (const auto& [name, info] : tensors) {
        MOIETY_CHECK(info.offset >= data_begin && info.offset <= file_bytes, "outside of the file");
        MOIETY_CHECK(info.num_bytes <= file_bytes - info.offset, "outside of the file");
        covered += info.num_bytes;
      }
    };
    check(parsed->tensors);
    check(parsed->others);
    MOIETY_CHECK(covered == data[0], "tensors do not cover the data exactly");
  }
  const auto shards = moiety::parse_shard_index(header);
  if (shards) {
    for (const auto& [name, file] : *shards) {
      MOIETY_CHECK(!file.empty() && file.find('/') == file.npos, "a shard outside of the folder");
    }
  }
  return 0;
}
