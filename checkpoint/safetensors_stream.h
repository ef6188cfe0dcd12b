#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/result.h"

namespace moiety {

/// Writes one safetensors file whose data never sit in memory as a whole.
///
/// create() writes the header and gives the file its full size under a temporary name; write()
/// fills tensors in any order and from any thread; publish() puts the file under its own name.
/// Bytes that were not written are zero. A stream that is not published leaves nothing behind.
class SafetensorsStream {
 public:
  struct Tensor {
    std::string name;
    DType dtype = DType::kF32;
    std::vector<std::int64_t> shape;
    std::uint64_t num_bytes() const;
  };

  /// Tensors lie in the order given; put wide elements first where element types differ, so that
  /// all are aligned. kIo names the file.
  static Result<SafetensorsStream> create(const std::filesystem::path& file,
                                          std::span<const Tensor> tensors);
  SafetensorsStream(SafetensorsStream&&) noexcept;
  SafetensorsStream& operator=(SafetensorsStream&&) noexcept;
  ~SafetensorsStream();

  /// Bytes of the whole file.
  std::uint64_t file_bytes() const;

  /// Writes bytes [begin, begin + bytes.size()) of tensor `index`. Thread-safe.
  Result<void> write(std::size_t index,
                     std::uint64_t begin,
                     std::span<const std::byte> bytes) const;

  /// Syncs and renames. Once, after the last write().
  Result<void> publish();

 private:
  struct State;
  explicit SafetensorsStream(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace moiety
