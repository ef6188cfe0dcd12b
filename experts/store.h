#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "common/ids.h"
#include "kernels/expert_ffn.h"

namespace moiety {

/// The routed experts that this process holds, packed for the kernels.
///
/// Thread-safe: experts may be loaded and dropped while others run; a runner that has found an
/// expert keeps it alive.
class ExpertStore {
 public:
  /// `checkpoint` outlives the store. Weights are packed as `dtype`: F32, BF16 or I8.
  ExpertStore(const Checkpoint& checkpoint, DType dtype);

  /// Reads and packs experts on all cores; those that are resident already cost nothing. On an
  /// error what was resident before stays, and nothing is added. The checkpoint's files are checked
  /// before and after: kIo or kDataLoss names one that is gone or has changed. One load at a
  /// time.
  Result<void> load(std::span<const ExpertId> experts);
  /// Drops every expert that is not in `experts`.
  void keep_only(const std::set<ExpertId>& experts);

  /// Null when it is not resident.
  std::shared_ptr<const kernels::ExpertWeights> find(ExpertId expert) const;

  /// What is held now, ascending.
  std::vector<ExpertId> resident() const;

  DType dtype() const { return dtype_; }
  std::size_t num_experts() const;
  /// Bytes of the packed weights held now: packed_expert_bytes() of each, which is what plans and
  /// capacities count with.
  std::uint64_t bytes_resident() const;
  /// Checkpoint bytes read for experts since the start.
  std::uint64_t bytes_read() const;

 private:
  using Loaded = std::map<ExpertId, std::shared_ptr<const kernels::ExpertWeights>>;
  /// Adds to `loaded` under mutex_.
  Result<void> load_one(ExpertId id, Loaded& loaded);
  std::uint64_t bytes_of(ExpertId id) const;

  const Checkpoint& checkpoint_;
  const DType dtype_;
  mutable std::mutex mutex_;
  Loaded experts_;                    // guarded by mutex_
  std::uint64_t bytes_resident_ = 0;  // guarded by mutex_
  std::uint64_t bytes_read_ = 0;      // guarded by mutex_
};

/// Every routed expert of a model, in (layer, expert) order.
std::vector<ExpertId> all_routed_experts(const Architecture& architecture);

}  // namespace moiety
