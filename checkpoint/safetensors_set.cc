#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <set>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_header.h"
#include "common/check.h"

namespace moiety {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

/// What tells one state of a file from another.
struct FileState {
  dev_t device = 0;
  ino_t inode = 0;
  off_t size = 0;
  timespec modified = {};
  explicit FileState(const struct stat& info)
      : device(info.st_dev), inode(info.st_ino), size(info.st_size), modified(info.st_mtim) {}
  bool same_file(const FileState& other) const {
    return device == other.device && inode == other.inode;
  }
  bool same_content(const FileState& other) const {
    return size == other.size && modified.tv_sec == other.modified.tv_sec &&
           modified.tv_nsec == other.modified.tv_nsec;
  }
};

struct SafetensorsSet::State {
  std::vector<Fd> fds;
  std::vector<FileState> opened;  ///< by file
  std::vector<std::filesystem::path> files;
  std::map<std::string, TensorInfo, std::less<>> tensors;
  std::map<std::string, OtherTensor, std::less<>> others;
  std::atomic<std::uint64_t> bytes_read{0};
};

namespace {

using TensorMap = std::map<std::string, TensorInfo, std::less<>>;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr std::size_t kMaxShards = 4096;

Error file_error(ErrorCode code, const std::filesystem::path& file, std::string_view what) {
  return fail(code, file.string() + ": " + std::string(what));
}

// Whether all numbers are below `infinity`, given as its bits. Without the sign, those of larger
// numbers are larger, and those of NaNs the largest.
template <class Bits>
bool all_below(std::span<const std::byte> values, Bits infinity) {
  Bits largest = 0;
  for (std::size_t i = 0; i + sizeof(Bits) <= values.size(); i += sizeof(Bits)) {
    Bits bits;
    std::memcpy(&bits, values.data() + i, sizeof bits);
    largest = std::max(largest, static_cast<Bits>(bits & std::numeric_limits<Bits>::max()));
  }
  return largest < infinity;
}

// Fills `out` from `offset` on. A short file is kDataLoss.
Result<void> read_exactly(int fd,
                          const std::filesystem::path& file,
                          std::uint64_t offset,
                          std::span<std::byte> out) {
  constexpr std::size_t kLargestRead = std::size_t{1} << 30;
  while (!out.empty()) {
    const ssize_t got =
        ::pread(fd, out.data(), std::min(out.size(), kLargestRead), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return file_error(ErrorCode::kIo, file, std::string("cannot read: ") + std::strerror(errno));
    }
    if (got == 0) {
      return file_error(ErrorCode::kDataLoss, file,
                        "ends at byte " + std::to_string(offset) + ", " +
                            std::to_string(out.size()) + " bytes early: it has become shorter");
    }
    offset += static_cast<std::uint64_t>(got);
    out = out.subspan(static_cast<std::size_t>(got));
  }
  return {};
}

struct OpenedFile {
  Fd fd;
  FileState state;
  SafetensorsHeader header;
};

Result<OpenedFile> open_safetensors(const std::filesystem::path& file) {
  // O_NONBLOCK: a named pipe in the place of the file must not hang us; it changes nothing for
  // files.
  Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return open_error(file);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) {
    return file_error(ErrorCode::kIo, file, std::string("cannot stat: ") + std::strerror(errno));
  }
  OpenedFile opened{std::move(fd), FileState(info), {}};
  if (!S_ISREG(info.st_mode)) {
    return file_error(ErrorCode::kInvalidArgument, file, "is not a regular file");
  }
  const auto file_bytes = static_cast<std::uint64_t>(info.st_size);
  std::uint64_t header_bytes = 0;
  if (file_bytes < sizeof header_bytes) {
    return file_error(ErrorCode::kDataLoss, file, "is too short for a safetensors file");
  }
  MOIETY_TRY(
      read_exactly(opened.fd.get(), file, 0, std::as_writable_bytes(std::span(&header_bytes, 1))));
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return file_error(ErrorCode::kInvalidArgument, file,
                      "says that its header has " + std::to_string(header_bytes) +
                          " bytes, more than the limit of " +
                          std::to_string(kMaxSafetensorsHeaderBytes) +
                          ": it is damaged or no safetensors file");
  }
  if (header_bytes > file_bytes - sizeof header_bytes) {
    return file_error(ErrorCode::kDataLoss, file, "ends inside its header: it is truncated");
  }
  std::string header(header_bytes, '\0');
  MOIETY_TRY(read_exactly(opened.fd.get(), file, sizeof header_bytes,
                          std::as_writable_bytes(std::span(header))));
  auto parsed = parse_safetensors_header(header, sizeof header_bytes + header_bytes, file_bytes);
  if (!parsed) return with_context(file.string(), parsed.error());
  opened.header = std::move(*parsed);
  return opened;
}

}  // namespace

SafetensorsSet::SafetensorsSet(std::unique_ptr<State> state) : state_(std::move(state)) {}
SafetensorsSet::SafetensorsSet(SafetensorsSet&&) noexcept = default;
SafetensorsSet& SafetensorsSet::operator=(SafetensorsSet&&) noexcept = default;
SafetensorsSet::~SafetensorsSet() = default;

Result<SafetensorsSet> SafetensorsSet::open_file(const std::filesystem::path& file) {
  MOIETY_ASSIGN(OpenedFile opened, open_safetensors(file));
  auto state = std::make_unique<State>();
  state->fds.push_back(std::move(opened.fd));
  state->opened.push_back(opened.state);
  state->files.push_back(file);
  state->tensors = std::move(opened.header.tensors);
  state->others = std::move(opened.header.others);
  return SafetensorsSet(std::move(state));
}

Result<SafetensorsSet> SafetensorsSet::open_folder(const std::filesystem::path& folder) {
  if (entry_exists(folder / kSingleFile)) return open_file(folder / kSingleFile);
  const std::filesystem::path index_path = folder / kIndexFile;
  if (!entry_exists(index_path)) {
    return file_error(ErrorCode::kNotFound, folder,
                      std::string("has neither ") + kSingleFile + " nor " + kIndexFile);
  }
  MOIETY_ASSIGN(const std::string text, read_regular_file(index_path, kMaxSafetensorsHeaderBytes));
  const auto index = parse_shard_index(text);
  if (!index) return with_context(index_path.string(), index.error());

  std::set<std::string> shards;
  for (const auto& [tensor, shard] : *index) shards.insert(shard);
  if (shards.size() > kMaxShards) {
    return file_error(ErrorCode::kInvalidArgument, index_path,
                      "names " + std::to_string(shards.size()) + " files, at most " +
                          std::to_string(kMaxShards) + " are understood");
  }
  auto state = std::make_unique<State>();
  for (const std::string& shard : shards) {
    auto opened = open_safetensors(folder / shard);
    if (!opened) {
      Error error = opened.error();
      if (error.code == ErrorCode::kNotFound)
        error.message += std::string(" (named by ") + kIndexFile + ")";
      return error;
    }
    const auto take = [&](auto& from, auto& into) -> Result<void> {
      for (auto& [tensor, info] : from) {
        const auto listed = index->find(tensor);
        if (listed == index->end() || listed->second != shard) {
          return file_error(ErrorCode::kInvalidArgument, folder / shard,
                            "holds tensor '" + tensor + "', which " + kIndexFile +
                                (listed == index->end() ? std::string(" does not list")
                                                        : " places in " + listed->second));
        }
        info.file = static_cast<std::uint32_t>(state->files.size());
        into.emplace(tensor, std::move(info));
      }
      return {};
    };
    MOIETY_TRY(take(opened->header.tensors, state->tensors));
    MOIETY_TRY(take(opened->header.others, state->others));
    state->fds.push_back(std::move(opened->fd));
    state->opened.push_back(opened->state);
    state->files.push_back(folder / shard);
  }
  for (const auto& [tensor, shard] : *index) {
    if (!state->tensors.contains(tensor) && !state->others.contains(tensor)) {
      return file_error(ErrorCode::kInvalidArgument, folder / shard,
                        "lacks tensor '" + tensor + "', which " + kIndexFile + " places there");
    }
  }
  return SafetensorsSet(std::move(state));
}

const TensorMap& SafetensorsSet::tensors() const { return state_->tensors; }

const std::map<std::string, OtherTensor, std::less<>>& SafetensorsSet::other_tensors() const {
  return state_->others;
}

const std::vector<std::filesystem::path>& SafetensorsSet::files() const { return state_->files; }

const TensorInfo* SafetensorsSet::find(std::string_view name) const {
  const auto found = state_->tensors.find(name);
  return found == state_->tensors.end() ? nullptr : &found->second;
}

Result<void> SafetensorsSet::check_unchanged() const {
  for (std::size_t i = 0; i < state_->files.size(); ++i) {
    const std::filesystem::path& file = state_->files[i];
    struct stat info {};
    if (::stat(file.c_str(), &info) != 0) {
      return file_error(ErrorCode::kIo, file,
                        errno == ENOENT
                            ? std::string("is gone: put it back and try again")
                            : std::string("cannot look at it: ") + std::strerror(errno));
    }
    const FileState now(info);
    if (!now.same_file(state_->opened[i])) {
      return file_error(ErrorCode::kDataLoss, file,
                        "was replaced since this process opened it: start the process again");
    }
    if (!now.same_content(state_->opened[i])) {
      return file_error(ErrorCode::kDataLoss, file,
                        "was written to since this process opened it: restore the checkpoint and "
                        "start the process again");
    }
  }
  return {};
}

std::uint64_t SafetensorsSet::bytes_read() const {
  return state_->bytes_read.load(std::memory_order_relaxed);
}

Result<void> SafetensorsSet::read_uncounted(std::string_view name,
                                            const TensorInfo& info,
                                            std::uint64_t begin,
                                            std::span<std::byte> out) const {
  MOIETY_CHECK(begin <= info.num_bytes && out.size() <= info.num_bytes - begin,
               "range outside of tensor " + std::string(name));
  auto result = read_exactly(state_->fds[info.file].get(), state_->files[info.file],
                             info.offset + begin, out);
  if (!result) {
    return fail(result.error().code,
                result.error().message + " (reading tensor '" + std::string(name) + "')");
  }
  return {};
}

Result<void> SafetensorsSet::read_range(std::string_view name,
                                        std::uint64_t begin,
                                        std::span<std::byte> out) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) return unreadable(name);
  MOIETY_TRY(read_uncounted(name, *info, begin, out));
  state_->bytes_read.fetch_add(out.size(), std::memory_order_relaxed);
  return {};
}

Result<void> SafetensorsSet::read(std::string_view name, std::span<std::byte> out) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) return unreadable(name);
  MOIETY_CHECK(out.size() == info->num_bytes, "wrong buffer size for tensor " + std::string(name));
  return read_range(name, 0, out);
}

Error SafetensorsSet::unreadable(std::string_view name) const {
  if (const auto other = state_->others.find(name); other != state_->others.end()) {
    return file_error(ErrorCode::kInvalidArgument, state_->files[other->second.file],
                      "tensor '" + std::string(name) + "' is " + other->second.dtype +
                          ", an element type that is not read");
  }
  std::string message =
      "no tensor '" + std::string(name) + "' in " + state_->files.front().string();
  if (state_->files.size() > 1) {
    message += " and " + std::to_string(state_->files.size() - 1) + " more files";
  }
  return fail(ErrorCode::kNotFound, std::move(message));
}

Error SafetensorsSet::wrong_dtype(std::string_view name,
                                  const TensorInfo& info,
                                  std::string_view needed) const {
  return file_error(ErrorCode::kInvalidArgument, state_->files[info.file],
                    "tensor '" + std::string(name) + "' is " + std::string(dtype_name(info.dtype)) +
                        ": " + std::string(needed) + " is needed");
}

// Reads a byte range of a tensor of F32, BF16 or F16 and looks for numbers that are none.
Result<void> SafetensorsSet::read_numbers(std::string_view name,
                                          const TensorInfo& info,
                                          std::uint64_t begin,
                                          std::span<std::byte> out) const {
  if (info.dtype != DType::kF32 && info.dtype != DType::kBF16 && info.dtype != DType::kF16) {
    return wrong_dtype(name, info, "F32, BF16 or F16");
  }
  MOIETY_TRY(read_range(name, begin, out));
  const bool finite = info.dtype == DType::kF32    ? all_below<std::int32_t>(out, 0x7f800000)
                      : info.dtype == DType::kBF16 ? all_below<std::int16_t>(out, 0x7f80)
                                                   : all_below<std::int16_t>(out, 0x7c00);
  if (finite) return {};
  return file_error(ErrorCode::kDataLoss, state_->files[info.file],
                    "tensor '" + std::string(name) +
                        "' holds numbers that are infinite or NaN: the file is damaged");
}

Result<void> SafetensorsSet::read_rows(const MatrixSource& source,
                                       std::int64_t first,
                                       std::span<std::byte> out) const {
  const TensorInfo* info = find(source.tensor);
  if (info == nullptr) return unreadable(source.tensor);
  const std::uint64_t row_bytes =
      static_cast<std::uint64_t>(source.columns) * dtype_bytes(info->dtype);
  const auto row = static_cast<std::uint64_t>(source.first_row + first);
  return read_numbers(source.tensor, *info, row * row_bytes, out);
}

Result<std::vector<float>> SafetensorsSet::read_floats(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) return unreadable(name);
  return read_floats(name, 0, info->num_elements());
}

Result<std::vector<float>> SafetensorsSet::read_floats(std::string_view name,
                                                       std::int64_t first,
                                                       std::int64_t count) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) return unreadable(name);
  MOIETY_CHECK(first >= 0 && count >= 0 && first <= info->num_elements() - count,
               "elements outside of tensor " + std::string(name));
  std::vector<float> values(static_cast<std::size_t>(count));
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(values));
  // Narrow numbers are read into the upper half of the result and widened from the front: element i
  // is written at 4i, at or before 2n + 2i where it and all later ones are read.
  const std::size_t width = dtype_bytes(info->dtype);
  const std::span<std::byte> source = bytes.last(values.size() * width);
  MOIETY_TRY(read_numbers(name, *info, static_cast<std::uint64_t>(first) * width, source));
  if (info->dtype == DType::kF32) return values;
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t narrow;
    std::memcpy(&narrow, source.data() + i * sizeof narrow, sizeof narrow);
    const float wide = info->dtype == DType::kBF16 ? bf16_to_float(narrow) : f16_to_float(narrow);
    std::memcpy(bytes.data() + i * sizeof wide, &wide, sizeof wide);
  }
  return values;
}

Result<std::vector<std::int64_t>> SafetensorsSet::read_integers(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) return unreadable(name);
  std::vector<std::int64_t> values(static_cast<std::size_t>(info->num_elements()));
  if (info->dtype == DType::kI64) {
    MOIETY_TRY(read(name, std::as_writable_bytes(std::span(values))));
    return values;
  }
  if (info->dtype == DType::kI32) {
    std::vector<std::int32_t> narrow(values.size());
    MOIETY_TRY(read(name, std::as_writable_bytes(std::span(narrow))));
    std::copy(narrow.begin(), narrow.end(), values.begin());
    return values;
  }
  return wrong_dtype(name, *info, "I64 or I32");
}

}  // namespace moiety
