#include "experts/store.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <optional>
#include <thread>

#include "checkpoint/packed_experts.h"
#include "common/check.h"
#include "common/thread_pool.h"
#include "kernels/pack_stream.h"

namespace moiety {
namespace {

Result<kernels::PackedMatrix> load_projection(const SafetensorsSet& tensors,
                                              const MatrixSource& source,
                                              DType dtype,
                                              std::uint64_t& bytes_read) {
  const TensorInfo* info = tensors.find(source.tensor);
  if (info == nullptr) {
    return fail(ErrorCode::kNotFound, "the checkpoint has no tensor " + source.tensor);
  }
  return kernels::pack_stream(dtype, source.rows, source.columns, info->dtype,
                              [&](std::int64_t row, std::span<std::byte> out) {
                                bytes_read += out.size();
                                return tensors.read_rows(source, row, out);
                              });
}

}  // namespace

ExpertStore::ExpertStore(const Checkpoint& checkpoint, DType dtype)
    : checkpoint_(checkpoint), dtype_(dtype) {}

Result<void> ExpertStore::load_one(ExpertId id, Loaded& loaded) {
  const FeedForwardSource source = checkpoint_.architecture().expert_source(id.layer, id.expert);
  const SafetensorsSet& tensors = checkpoint_.tensors();
  auto weights = std::make_shared<kernels::ExpertWeights>();
  std::uint64_t bytes_read = 0;
  MOIETY_ASSIGN(weights->gate, load_projection(tensors, source.gate_proj, dtype_, bytes_read));
  MOIETY_ASSIGN(weights->up, load_projection(tensors, source.up_proj, dtype_, bytes_read));
  MOIETY_ASSIGN(weights->down, load_projection(tensors, source.down_proj, dtype_, bytes_read));
  MOIETY_CHECK(weights->num_bytes() == bytes_of(id), "plans count an expert as it is packed");
  const std::lock_guard lock(mutex_);
  bytes_read_ += bytes_read;
  loaded.emplace(id, std::move(weights));
  return {};
}

Result<void> ExpertStore::load(std::span<const ExpertId> experts) {
  const Architecture& arch = checkpoint_.architecture();
  std::set<ExpertId> wanted;
  for (const ExpertId id : experts) {
    if (id.layer < 0 || id.layer >= arch.num_layers() || id.expert < 0 ||
        id.expert >= arch.layers[static_cast<std::size_t>(id.layer)].moe.num_routed) {
      return fail(ErrorCode::kInvalidArgument, "the checkpoint has no routed expert " +
                                                   std::to_string(id.expert) + " in layer " +
                                                   std::to_string(id.layer));
    }
    if (find(id) == nullptr) wanted.insert(id);
  }
  const std::vector<ExpertId> missing(wanted.begin(), wanted.end());
  if (missing.empty()) return {};
  MOIETY_TRY(checkpoint_.tensors().check_unchanged());
  Loaded loaded;
  std::atomic<std::size_t> next{0};
  std::mutex error_mutex;
  std::optional<Error> error;
  const auto work = [&] {
    for (std::size_t i; (i = next.fetch_add(1)) < missing.size();) {
      Result<void> outcome;
      try {
        outcome = load_one(missing[i], loaded);
      } catch (const std::bad_alloc&) {
        outcome = fail(ErrorCode::kResourceExhausted,
                       "no memory for expert " + std::to_string(missing[i].expert) + " of layer " +
                           std::to_string(missing[i].layer));
      }
      if (!outcome) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = outcome.error();
        next = missing.size();
      }
    }
  };
  {
    // Threads of our own: the pool may be computing with other experts meanwhile.
    std::vector<std::jthread> threads;
    const std::size_t count = std::min(available_cores(), missing.size());
    for (std::size_t i = 1; i < count; ++i) threads.emplace_back(work);
    work();
  }
  if (error) return *error;
  // Bytes that were written while we read them would otherwise pass.
  MOIETY_TRY(checkpoint_.tensors().check_unchanged());
  const std::lock_guard lock(mutex_);
  for (const auto& [id, weights] : loaded) bytes_resident_ += bytes_of(id);
  experts_.merge(loaded);
  return {};
}

std::vector<ExpertId> ExpertStore::resident() const {
  const std::lock_guard lock(mutex_);
  std::vector<ExpertId> experts;
  experts.reserve(experts_.size());
  for (const auto& [id, weights] : experts_) experts.push_back(id);
  return experts;
}

void ExpertStore::keep_only(const std::set<ExpertId>& experts) {
  const std::lock_guard lock(mutex_);
  for (auto it = experts_.begin(); it != experts_.end();) {
    if (experts.contains(it->first)) {
      ++it;
    } else {
      bytes_resident_ -= bytes_of(it->first);
      it = experts_.erase(it);
    }
  }
}

std::shared_ptr<const kernels::ExpertWeights> ExpertStore::find(ExpertId expert) const {
  const std::lock_guard lock(mutex_);
  const auto it = experts_.find(expert);
  return it == experts_.end() ? nullptr : it->second;
}

std::uint64_t ExpertStore::bytes_of(ExpertId id) const {
  return packed_expert_bytes(checkpoint_.architecture(), id.layer, dtype_);
}

std::size_t ExpertStore::num_experts() const {
  const std::lock_guard lock(mutex_);
  return experts_.size();
}

std::uint64_t ExpertStore::bytes_resident() const {
  const std::lock_guard lock(mutex_);
  return bytes_resident_;
}

std::uint64_t ExpertStore::bytes_read() const {
  const std::lock_guard lock(mutex_);
  return bytes_read_;
}

std::vector<ExpertId> all_routed_experts(const Architecture& architecture) {
  std::vector<ExpertId> experts;
  for (std::int32_t layer = 0; layer < architecture.num_layers(); ++layer) {
    const std::int32_t count = architecture.layers[static_cast<std::size_t>(layer)].moe.num_routed;
    for (std::int32_t expert = 0; expert < count; ++expert) experts.push_back({layer, expert});
  }
  return experts;
}

}  // namespace moiety
