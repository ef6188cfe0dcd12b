#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/architecture.h"
#include "common/file.h"

namespace moiety {

/// Where one tensor lies. `offset` counts from the start of its file.
struct TensorInfo {
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::uint32_t file = 0;  ///< index into SafetensorsSet::files()
  std::uint64_t offset = 0;
  std::uint64_t num_bytes = 0;
  std::int64_t num_elements() const;
};

/// A tensor of an element type that is not read (BOOL, U8, F8_E4M3, ...); it may stand in a file
/// beside others.
struct OtherTensor {
  std::string dtype;  ///< as the file spells it
  std::uint32_t file = 0;
  std::uint64_t offset = 0;
  std::uint64_t num_bytes = 0;
};

/// Read access to the tensors of one or more safetensors files.
///
/// Headers are read and checked when it is opened (sizes, offsets, overlaps, duplicate names,
/// shapes against byte counts); tensor data only when asked for, by pread into the caller's memory:
/// nothing is mapped, so a file that shrinks gives kDataLoss and never a fault. Thread-safe after
/// opening.
class SafetensorsSet {
 public:
  /// One file.
  static Result<SafetensorsSet> open_file(const std::filesystem::path& file);
  /// A folder with model.safetensors, or model.safetensors.index.json and its shards.
  static Result<SafetensorsSet> open_folder(const std::filesystem::path& folder);

  SafetensorsSet(SafetensorsSet&&) noexcept;
  SafetensorsSet& operator=(SafetensorsSet&&) noexcept;
  ~SafetensorsSet();

  /// The tensors that can be read.
  const std::map<std::string, TensorInfo, std::less<>>& tensors() const;
  /// Those whose element type is none of DType. Reading one is kInvalidArgument.
  const std::map<std::string, OtherTensor, std::less<>>& other_tensors() const;
  /// The files, in the order that TensorInfo::file counts.
  const std::vector<std::filesystem::path>& files() const;
  /// Null when there is no such tensor in tensors().
  const TensorInfo* find(std::string_view name) const;

  /// Reads the raw bytes of a tensor; `out` has exactly its num_bytes.
  /// kNotFound: no such tensor. kInvalidArgument: one of other_tensors(). kDataLoss: the file has
  /// become shorter. kIo: the read failed.
  Result<void> read(std::string_view name, std::span<std::byte> out) const;
  /// Reads a byte range of a tensor, relative to its first byte.
  Result<void> read_range(std::string_view name,
                          std::uint64_t begin,
                          std::span<std::byte> out) const;
  /// Reads the raw bytes of whole rows of `source`, a tensor of F32, BF16 or F16, from its row
  /// `first` on. kDataLoss, naming file and tensor, if a number is infinite or NaN.
  Result<void> read_rows(const MatrixSource& source,
                         std::int64_t first,
                         std::span<std::byte> out) const;
  /// Reads a tensor of F32, BF16 or F16 as floats (exact). kDataLoss as in read_rows().
  Result<std::vector<float>> read_floats(std::string_view name) const;
  /// Reads `count` elements of such a tensor from element `first` on, and no other bytes.
  Result<std::vector<float>> read_floats(std::string_view name,
                                         std::int64_t first,
                                         std::int64_t count) const;
  /// Reads a tensor of I64 or I32 as 64-bit integers.
  Result<std::vector<std::int64_t>> read_integers(std::string_view name) const;

  /// Whether the files are still those that were opened. kIo names one that is gone or cannot be
  /// looked at, kDataLoss one that was replaced or written to since (by inode, size and
  /// modification time).
  Result<void> check_unchanged() const;

  /// Bytes of tensor data read so far through this object (headers not counted).
  std::uint64_t bytes_read() const;

  /// Hex SHA-256 over what names these weights; see Checkpoint::fingerprint(). Reads at most 8 KiB
  /// of each tensor, not counted in bytes_read(). other_tensors() are not part of it.
  Result<std::string> fingerprint() const;

 private:
  struct State;
  explicit SafetensorsSet(std::unique_ptr<State> state);
  Result<void> read_uncounted(std::string_view name,
                              const TensorInfo& info,
                              std::uint64_t begin,
                              std::span<std::byte> out) const;
  Result<void> read_numbers(std::string_view name,
                            const TensorInfo& info,
                            std::uint64_t begin,
                            std::span<std::byte> out) const;
  Error unreadable(std::string_view name) const;
  Error wrong_dtype(std::string_view name, const TensorInfo& info, std::string_view needed) const;
  std::unique_ptr<State> state_;
};

/// Writes one safetensors file (used by `moiety logits` and tests).
class SafetensorsWriter {
 public:
  void add(std::string name,
           DType dtype,
           std::vector<std::int64_t> shape,
           std::vector<std::byte> data);
  void add_floats(std::string name, std::vector<std::int64_t> shape, std::span<const float> data);
  void add_integers(std::string name,
                    std::vector<std::int64_t> shape,
                    std::span<const std::int64_t> data);
  /// kIo with the path when the disk refuses; the previous file is then untouched.
  Result<void> write(const std::filesystem::path& file) const;

 private:
  struct Entry {
    DType dtype;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> data;
  };
  std::map<std::string, Entry> entries_;
};

/// A checkpoint folder as users download it: config.json, safetensors, optional
/// pruning_metadata.json. Opening checks that every expected tensor is there with its exact shape
/// and that nothing unknown is. Thread-safe after opening.
class Checkpoint {
 public:
  static Result<Checkpoint> open(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const { return folder_; }
  const Architecture& architecture() const { return architecture_; }
  const SafetensorsSet& tensors() const { return tensors_; }
  /// Hex SHA-256 over (name, dtype, shape, first and last 4 KiB) of the tensors in name order; the
  /// exact byte string that is hashed stands in checkpoint/README.md. Its reads are not counted in
  /// bytes_read.
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  Checkpoint(std::filesystem::path folder,
             Architecture architecture,
             SafetensorsSet tensors,
             std::string fingerprint);
  std::filesystem::path folder_;
  Architecture architecture_;
  SafetensorsSet tensors_;
  std::string fingerprint_;
};

}  // namespace moiety
