#include "experts/store.h"

namespace moiety {
namespace {

Result<kernels::PackedMatrix> load_projection(const SafetensorsSet& tensors,
                                              const std::string& name,
                                              DType dtype,
                                              std::uint64_t& bytes_read) {
  const TensorInfo* info = tensors.find(name);
  if (info == nullptr) return fail(ErrorCode::kNotFound, "the checkpoint has no tensor " + name);
  MOIETY_ASSIGN(const std::vector<float> values, tensors.read_floats(name));
  bytes_read += info->num_bytes;
  return kernels::PackedMatrix(dtype, static_cast<std::int32_t>(info->shape.at(0)),
                               static_cast<std::int32_t>(info->shape.at(1)), values);
}

}  // namespace

ExpertStore::ExpertStore(const Checkpoint& checkpoint, DType dtype)
    : checkpoint_(checkpoint), dtype_(dtype) {}

Result<void> ExpertStore::load(std::span<const ExpertId> experts) {
  const Architecture& arch = checkpoint_.architecture();
  for (const ExpertId id : experts) {
    if (id.layer < 0 || id.layer >= arch.num_layers() || id.expert < 0 ||
        id.expert >= arch.layers[static_cast<std::size_t>(id.layer)].moe.num_routed) {
      return fail(ErrorCode::kInvalidArgument, "the checkpoint has no routed expert " +
                                                   std::to_string(id.expert) + " in layer " +
                                                   std::to_string(id.layer));
    }
    if (find(id) != nullptr) continue;
    const Architecture::ExpertNames names = arch.expert_names(id.layer, id.expert);
    auto weights = std::make_shared<kernels::ExpertWeights>();
    std::uint64_t bytes_read = 0;
    MOIETY_ASSIGN(weights->gate,
                  load_projection(checkpoint_.tensors(), names.gate_proj, dtype_, bytes_read));
    MOIETY_ASSIGN(weights->up,
                  load_projection(checkpoint_.tensors(), names.up_proj, dtype_, bytes_read));
    MOIETY_ASSIGN(weights->down,
                  load_projection(checkpoint_.tensors(), names.down_proj, dtype_, bytes_read));
    const std::lock_guard lock(mutex_);
    bytes_read_ += bytes_read;
    bytes_resident_ += weights->num_bytes();
    experts_.emplace(id, std::move(weights));
  }
  return {};
}

void ExpertStore::keep_only(const std::set<ExpertId>& experts) {
  const std::lock_guard lock(mutex_);
  for (auto it = experts_.begin(); it != experts_.end();) {
    if (experts.contains(it->first)) {
      ++it;
    } else {
      bytes_resident_ -= it->second->num_bytes();
      it = experts_.erase(it);
    }
  }
}

std::shared_ptr<const kernels::ExpertWeights> ExpertStore::find(ExpertId expert) const {
  const std::lock_guard lock(mutex_);
  const auto it = experts_.find(expert);
  return it == experts_.end() ? nullptr : it->second;
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
