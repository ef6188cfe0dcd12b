#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "common/ids.h"
#include "experts/run.h"
#include "experts/store.h"

namespace moiety {

/// What it takes to hold experts.
struct LocalExpertOptions {
  const Checkpoint* checkpoint = nullptr;
  DType dtype = DType::kBF16;
  kernels::Variant variant{};
  ThreadPool* pool = nullptr;  ///< of the step loop
  /// Told of every attempt to read that failed, on the reading thread, with the epoch that wants
  /// the experts. May be empty.
  std::function<void(Epoch, const Error&)> on_failed = {};
};

/// The experts that a router holds itself. They are read on a thread of their own while steps run;
/// all calls come from one other thread, the step loop's, except resident_*().
class LocalExperts {
 public:
  /// `on_loaded` is called on the reading thread when take_loaded() has something to say.
  LocalExperts(const LocalExpertOptions& options, std::function<void()> on_loaded);
  /// Waits for what is being read right now, not for the rest.
  ~LocalExperts();

  /// Begins to read what is not there yet; returns at once. Takes the place of an earlier call that
  /// is not done. What cannot be read is tried again, after 0.2 s and then every 5 s at least,
  /// until it can or another call takes its place.
  void load(Epoch epoch, std::vector<ExpertId> experts);
  bool loading() const;
  /// True once after all that the last load() named is there.
  bool take_loaded();
  /// Whether all of these (ascending) are there.
  bool holds(const std::vector<ExpertId>& experts) const;
  /// Drops all others. Not while it is loading.
  void keep_only(const std::vector<ExpertId>& experts);

  std::vector<ExpertId> resident() const { return store_.resident(); }
  std::uint64_t resident_experts() const { return store_.num_experts(); }
  std::uint64_t resident_bytes() const { return store_.bytes_resident(); }

  /// What a worker would answer, as ExpertRunner says.
  Result<void> run(std::int32_t layer, const Dispatch& dispatch, std::span<float> reply);

 private:
  struct Load {
    Epoch epoch;
    std::vector<ExpertId> experts;
  };

  void work();
  /// Until all of it is there. False when it shall not go on: another load, or the end.
  bool read(const Load& load);
  /// One attempt, a few experts at a time; nullopt as above.
  std::optional<Result<void>> attempt(const Load& load);

  ExpertStore store_;
  ExpertRunner runner_;
  const std::function<void(Epoch, const Error&)> on_failed_;
  const std::function<void()> on_loaded_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::optional<Load> wanted_;  // guarded by mutex_, as all below
  bool loading_ = false;
  bool loaded_ = false;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace moiety
