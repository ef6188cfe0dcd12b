#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_stream.h"
#include "common/check.h"

namespace moiety {
namespace {

std::string json_string(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
      quoted += escaped;
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

// The header's tensors, one by one, in the order of their data.
class HeaderText {
 public:
  void add(std::string_view name,
           DType dtype,
           std::span<const std::int64_t> shape,
           std::uint64_t num_bytes) {
    if (text_.size() > 1) text_ += ',';
    text_ +=
        json_string(name) + ":{\"dtype\":\"" + std::string(dtype_name(dtype)) + "\",\"shape\":[";
    for (std::size_t i = 0; i < shape.size(); ++i) {
      if (i > 0) text_ += ',';
      text_ += std::to_string(shape[i]);
    }
    text_ += "],\"data_offsets\":[" + std::to_string(offset_) + ',';
    offset_ += num_bytes;
    text_ += std::to_string(offset_) + "]}";
  }
  std::uint64_t data_bytes() const { return offset_; }
  // Length and JSON, padded so that the data begin at a multiple of eight.
  std::string finish() && {
    text_ += '}';
    text_.resize((text_.size() + 7) / 8 * 8, ' ');
    const std::uint64_t length = text_.size();
    return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text_;
  }

 private:
  std::string text_ = "{";
  std::uint64_t offset_ = 0;
};

// A file that appears under its name only when it is complete and on disk; otherwise it is removed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::filesystem::path& target) : target_(target) {
    static std::atomic<std::uint64_t> counter{0};
    temporary_ = target.string() + ".tmp." + std::to_string(::getpid()) + "." +
                 std::to_string(counter.fetch_add(1));
  }
  TemporaryFile(TemporaryFile&&) noexcept = default;
  TemporaryFile& operator=(TemporaryFile&&) = delete;
  ~TemporaryFile() {
    if (fd_) ::unlink(temporary_.c_str());
  }

  Result<void> create() {
    fd_ = Fd(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (!fd_) return error();
    return {};
  }

  Result<void> append(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t wrote = ::write(fd_.get(), bytes.data(), bytes.size());
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) return error();
      bytes = bytes.subspan(static_cast<std::size_t>(wrote));
    }
    return {};
  }

  Result<void> resize(std::uint64_t bytes) {
    if (::ftruncate(fd_.get(), static_cast<off_t>(bytes)) != 0) return error();
    return {};
  }

  Result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t wrote =
          ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) return error();
      bytes = bytes.subspan(static_cast<std::size_t>(wrote));
      offset += static_cast<std::uint64_t>(wrote);
    }
    return {};
  }

  Result<void> publish() {
    if (::fsync(fd_.get()) != 0 || ::rename(temporary_.c_str(), target_.c_str()) != 0)
      return error();
    const Fd done = std::move(fd_);  // nothing to remove any more
    return {};
  }

 private:
  Error error() const {
    return fail(ErrorCode::kIo, target_.string() + ": cannot write: " + std::strerror(errno));
  }

  std::filesystem::path target_;
  std::string temporary_;
  Fd fd_;
};

}  // namespace

void SafetensorsWriter::add(std::string name,
                            DType dtype,
                            std::vector<std::int64_t> shape,
                            std::vector<std::byte> data) {
  std::uint64_t bytes = dtype_bytes(dtype);
  for (std::int64_t size : shape) {
    MOIETY_CHECK(size >= 0, "negative size in the shape of " + name);
    bytes *= static_cast<std::uint64_t>(size);
  }
  MOIETY_CHECK(bytes == data.size(), "shape and data of " + name + " differ");
  MOIETY_CHECK(name != "__metadata__" && !entries_.contains(name), "cannot add " + name);
  entries_.emplace(std::move(name), Entry{dtype, std::move(shape), std::move(data)});
}

void SafetensorsWriter::add_floats(std::string name,
                                   std::vector<std::int64_t> shape,
                                   std::span<const float> data) {
  const auto bytes = std::as_bytes(data);
  add(std::move(name), DType::kF32, std::move(shape), {bytes.begin(), bytes.end()});
}

void SafetensorsWriter::add_integers(std::string name,
                                     std::vector<std::int64_t> shape,
                                     std::span<const std::int64_t> data) {
  const auto bytes = std::as_bytes(data);
  add(std::move(name), DType::kI64, std::move(shape), {bytes.begin(), bytes.end()});
}

Result<void> SafetensorsWriter::write(const std::filesystem::path& file) const {
  // Wide elements first, so that every tensor is aligned to its element.
  std::vector<const std::pair<const std::string, Entry>*> order;
  for (const auto& entry : entries_) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return dtype_bytes(a->second.dtype) > dtype_bytes(b->second.dtype);
  });
  HeaderText header;
  for (const auto* item : order) {
    header.add(item->first, item->second.dtype, item->second.shape, item->second.data.size());
  }
  TemporaryFile output(file);
  MOIETY_TRY(output.create());
  const std::string text = std::move(header).finish();
  MOIETY_TRY(output.append(std::as_bytes(std::span(text))));
  for (const auto* item : order) MOIETY_TRY(output.append(item->second.data));
  return output.publish();
}

std::uint64_t SafetensorsStream::Tensor::num_bytes() const {
  std::uint64_t bytes = dtype_bytes(dtype);
  for (const std::int64_t size : shape) bytes *= static_cast<std::uint64_t>(size);
  return bytes;
}

struct SafetensorsStream::State {
  TemporaryFile output;
  std::vector<std::uint64_t> offsets;  // of each tensor in the file, then the file's end
};

SafetensorsStream::SafetensorsStream(std::unique_ptr<State> state) : state_(std::move(state)) {}
SafetensorsStream::SafetensorsStream(SafetensorsStream&&) noexcept = default;
SafetensorsStream& SafetensorsStream::operator=(SafetensorsStream&&) noexcept = default;
SafetensorsStream::~SafetensorsStream() = default;

Result<SafetensorsStream> SafetensorsStream::create(const std::filesystem::path& file,
                                                    std::span<const Tensor> tensors) {
  auto state = std::make_unique<State>(State{TemporaryFile(file), {}});
  HeaderText header;
  for (const Tensor& tensor : tensors) {
    state->offsets.push_back(header.data_bytes());
    header.add(tensor.name, tensor.dtype, tensor.shape, tensor.num_bytes());
  }
  state->offsets.push_back(header.data_bytes());
  const std::string text = std::move(header).finish();
  for (std::uint64_t& offset : state->offsets) offset += text.size();
  MOIETY_TRY(state->output.create());
  MOIETY_TRY(state->output.append(std::as_bytes(std::span(text))));
  MOIETY_TRY(state->output.resize(state->offsets.back()));
  return SafetensorsStream(std::move(state));
}

std::uint64_t SafetensorsStream::file_bytes() const { return state_->offsets.back(); }

Result<void> SafetensorsStream::write(std::size_t index,
                                      std::uint64_t begin,
                                      std::span<const std::byte> bytes) const {
  MOIETY_CHECK(index + 1 < state_->offsets.size(), "no such tensor");
  const std::uint64_t offset = state_->offsets[index] + begin;
  MOIETY_CHECK(offset + bytes.size() <= state_->offsets[index + 1], "beyond the tensor's end");
  return state_->output.write_at(offset, bytes);
}

Result<void> SafetensorsStream::publish() { return state_->output.publish(); }

}  // namespace moiety
