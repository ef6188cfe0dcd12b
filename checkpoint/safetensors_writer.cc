#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "checkpoint/checkpoint.h"
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

// A file that appears under its name only when it is complete and on disk; otherwise it is removed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::filesystem::path& target) : target_(target) {
    static std::atomic<std::uint64_t> counter{0};
    temporary_ = target.string() + ".tmp." + std::to_string(::getpid()) + "." +
                 std::to_string(counter.fetch_add(1));
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
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
  std::string header = "{";
  std::uint64_t offset = 0;
  for (const auto* item : order) {
    const auto& [name, entry] = *item;
    if (header.size() > 1) header += ',';
    header += json_string(name) + ":{\"dtype\":\"" + std::string(dtype_name(entry.dtype)) +
              "\",\"shape\":[";
    for (std::size_t i = 0; i < entry.shape.size(); ++i) {
      if (i > 0) header += ',';
      header += std::to_string(entry.shape[i]);
    }
    header += "],\"data_offsets\":[" + std::to_string(offset) + ',';
    offset += entry.data.size();
    header += std::to_string(offset) + "]}";
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');

  TemporaryFile output(file);
  MOIETY_TRY(output.create());
  const std::uint64_t header_bytes = header.size();
  MOIETY_TRY(output.append(std::as_bytes(std::span(&header_bytes, 1))));
  MOIETY_TRY(output.append(std::as_bytes(std::span(header))));
  for (const auto* item : order) MOIETY_TRY(output.append(item->second.data));
  return output.publish();
}

}  // namespace moiety
