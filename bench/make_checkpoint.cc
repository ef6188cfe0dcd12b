#include "bench/make_checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <vector>

#include "bench/random_weights.h"
#include "bench/synthetic_tokenizer.h"
#include "checkpoint/architecture.h"
#include "checkpoint/safetensors_stream.h"
#include "common/file.h"

namespace moiety::bench {
namespace {

constexpr std::uint64_t kChunkBytes = std::uint64_t{4} << 20;  // a thread makes and writes at once

constexpr std::string_view kTokenizerConfig = R"({
  "tokenizer_class": "PreTrainedTokenizerFast",
  "eos_token": "<|endoftext|>",
  "add_bos_token": false,
  "clean_up_tokenization_spaces": false,
  "chat_template": "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
}
)";

/// A folder that is removed unless it was renamed to its target.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::filesystem::path& target)
      : target_(target), path_(target.string() + ".tmp." + std::to_string(::getpid())) {}
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ec;
    std::filesystem::remove_all(path_, ec);
  }
  Result<void> create() {
    std::error_code ec;
    std::filesystem::create_directories(path_, ec);
    if (ec) return fail(ErrorCode::kIo, path_.string() + ": " + ec.message());
    return {};
  }
  Result<void> publish() {
    std::error_code ec;
    std::filesystem::remove(target_, ec);  // an empty one
    std::filesystem::rename(path_, target_, ec);
    if (ec) return fail(ErrorCode::kIo, target_.string() + ": " + ec.message());
    return {};
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path target_;
  std::filesystem::path path_;
};

std::string gigabytes(std::uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GB", static_cast<double>(bytes) / 1e9);
  return text;
}

struct Shard {
  std::string file;
  std::vector<ExpectedTensor> tensors;
  std::vector<SafetensorsStream::Tensor> specs;
};

std::vector<Shard> split(std::vector<ExpectedTensor> tensors,
                         DType dtype,
                         std::uint64_t shard_bytes) {
  std::vector<Shard> shards;
  std::uint64_t filled = 0;
  for (ExpectedTensor& tensor : tensors) {
    SafetensorsStream::Tensor spec{tensor.name, dtype, tensor.shape};
    const std::uint64_t bytes = spec.num_bytes();
    if (shards.empty() || filled + bytes > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    filled += bytes;
    shards.back().specs.push_back(std::move(spec));
    shards.back().tensors.push_back(std::move(tensor));
  }
  for (std::size_t i = 0; i < shards.size(); ++i) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    shards[i].file = shards.size() == 1 ? "model.safetensors" : name;
  }
  return shards;
}

std::string index_json(const std::vector<Shard>& shards, std::uint64_t total) {
  std::string text = "{\"metadata\": {\"total_size\": " + std::to_string(total) + "},\n";
  text += "\"weight_map\": {";
  bool first = true;
  for (const Shard& shard : shards) {
    for (const ExpectedTensor& tensor : shard.tensors) {
      text += first ? "\n" : ",\n";
      first = false;
      text += "\"" + tensor.name + "\": \"" + shard.file + "\"";
    }
  }
  return text + "}}\n";
}

struct Written {
  std::atomic<std::uint64_t> done{0};
  std::uint64_t total = 0;
};

Result<void> write_shard(const MakeCheckpoint& options,
                         const std::filesystem::path& folder,
                         const Shard& shard,
                         std::int32_t num_layers,
                         Written& written,
                         ThreadPool& pool) {
  MOIETY_ASSIGN(SafetensorsStream stream,
                SafetensorsStream::create(folder / shard.file, shard.specs));
  struct Chunk {
    std::size_t tensor;
    std::uint64_t begin, bytes;
  };
  std::vector<Chunk> chunks;
  for (std::size_t i = 0; i < shard.specs.size(); ++i) {
    const std::uint64_t bytes = shard.specs[i].num_bytes();
    for (std::uint64_t begin = 0; begin < bytes; begin += kChunkBytes)
      chunks.push_back({i, begin, std::min(kChunkBytes, bytes - begin)});
  }
  std::vector<std::vector<std::byte>> buffers(pool.num_threads());
  std::mutex mutex;
  Result<void> outcome;
  std::atomic<bool> stop{false};
  pool.parallel_for(chunks.size(), [&](std::size_t index, std::size_t thread) {
    if (stop) return;
    const Chunk& chunk = chunks[index];
    std::vector<std::byte>& buffer = buffers[thread];
    buffer.resize(chunk.bytes);
    const ExpectedTensor& tensor = shard.tensors[chunk.tensor];
    fill_random(options.seed, name_key(tensor.name), weights_distribution(tensor, num_layers),
                options.dtype, chunk.begin / dtype_bytes(options.dtype), buffer);
    Result<void> done = stream.write(chunk.tensor, chunk.begin, buffer);
    const std::uint64_t so_far = written.done += chunk.bytes;
    const std::lock_guard lock(mutex);
    if (done && options.progress && !options.progress(so_far, written.total))
      done = fail(ErrorCode::kCancelled, "interrupted");
    if (done || !outcome) return;
    outcome = done;
    stop = true;
  });
  MOIETY_TRY(outcome);
  return stream.publish();
}

Result<void> check_target(const std::filesystem::path& folder, std::uint64_t needed) {
  std::error_code ec;
  const auto status = std::filesystem::status(folder, ec);
  // A link that leads nowhere is in the way, too.
  const bool exists = std::filesystem::exists(std::filesystem::symlink_status(folder, ec));
  if (exists && !std::filesystem::is_directory(status)) {
    return fail(ErrorCode::kFailedPrecondition,
                folder.string() + " exists and is not a folder: nothing is overwritten");
  }
  if (exists && !std::filesystem::is_empty(folder, ec)) {
    return fail(ErrorCode::kFailedPrecondition,
                folder.string() +
                    " exists and is not empty: nothing is overwritten; name another "
                    "folder or remove it");
  }
  std::filesystem::path existing = std::filesystem::absolute(folder);
  while (!std::filesystem::exists(existing, ec) && existing.has_relative_path())
    existing = existing.parent_path();
  const auto space = std::filesystem::space(existing, ec);
  if (ec) return fail(ErrorCode::kIo, existing.string() + ": " + ec.message());
  if (space.available < needed) {
    return fail(ErrorCode::kResourceExhausted, folder.string() + ": the checkpoint needs " +
                                                   gigabytes(needed) + ", only " +
                                                   gigabytes(space.available) + " are free");
  }
  return {};
}

std::uint64_t bytes_of(const std::vector<ExpectedTensor>& tensors, DType dtype) {
  std::uint64_t total = 0;
  for (const ExpectedTensor& tensor : tensors)
    total += SafetensorsStream::Tensor{tensor.name, dtype, tensor.shape}.num_bytes();
  return total;
}

}  // namespace

Result<std::uint64_t> checkpoint_bytes(const std::string& config_json, DType dtype) {
  MOIETY_ASSIGN(const Architecture architecture, parse_architecture(config_json, false));
  return bytes_of(expected_tensors(architecture), dtype);
}

Result<std::uint64_t> make_checkpoint(const MakeCheckpoint& options, ThreadPool& pool) {
  // "out/" names the same folder as "out".
  std::filesystem::path target = options.folder.lexically_normal();
  if (!target.has_filename()) target = target.parent_path();
  MOIETY_ASSIGN(const Architecture architecture, parse_architecture(options.config_json, false));
  std::vector<ExpectedTensor> tensors = expected_tensors(architecture);
  Written written;
  written.total = bytes_of(tensors, options.dtype);
  std::string tokenizer;
  if (!options.base_tokenizer.empty()) {
    MOIETY_ASSIGN(const std::string base, read_file(options.base_tokenizer));
    auto resized = resize_tokenizer(base, architecture.vocab_size);
    if (!resized) return with_context(options.base_tokenizer.string(), resized.error());
    tokenizer = std::move(*resized);
  }
  constexpr std::uint64_t kBesidesTensors = std::uint64_t{64} << 20;
  MOIETY_TRY(check_target(target, written.total + kBesidesTensors));

  TemporaryFolder folder(target);
  MOIETY_TRY(folder.create());
  const std::vector<Shard> shards = split(std::move(tensors), options.dtype, options.shard_bytes);
  for (const Shard& shard : shards) {
    MOIETY_TRY(
        write_shard(options, folder.path(), shard, architecture.num_layers(), written, pool));
  }
  if (shards.size() > 1) {
    MOIETY_TRY(write_file(folder.path() / "model.safetensors.index.json",
                          index_json(shards, written.total)));
  }
  if (!tokenizer.empty()) {
    MOIETY_TRY(write_file(folder.path() / "tokenizer.json", tokenizer));
    MOIETY_TRY(write_file(folder.path() / "tokenizer_config.json", kTokenizerConfig));
  }
  MOIETY_TRY(write_file(folder.path() / "generation_config.json", "{\n  \"eos_token_id\": 0\n}\n"));
  MOIETY_TRY(write_file(folder.path() / "config.json", options.config_json));
  MOIETY_TRY(folder.publish());
  return written.total;
}

}  // namespace moiety::bench
