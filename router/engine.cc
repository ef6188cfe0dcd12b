#include "router/engine.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/log.h"

namespace moiety {
namespace {

constexpr std::chrono::milliseconds kIdleWait{
    1000};  // also how late a waiting request's deadline is seen

bool all_finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

Error shutting_down() { return fail(ErrorCode::kUnavailable, "the server is shutting down"); }

}  // namespace

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

Engine::Engine(const Model& model,
               StepBackend& backend,
               const EngineOptions& options,
               EngineObserver* observer)
    : model_(model),
      backend_(backend),
      options_(options),
      observer_(observer),
      kv_(model.architecture(),
          model.dtype(),
          static_cast<std::int32_t>(std::clamp<std::uint64_t>(
              options.kv_cache_bytes / KvCache::block_bytes(model.architecture(), model.dtype()),
              1,
              1u << 24))),
      thread_([this] { loop(); }) {}

Engine::~Engine() {
  stop_ = true;
  backend_.interrupt();
  thread_.join();
}

Result<Engine::RequestId> Engine::submit(GenerateRequest request, RequestCallbacks callbacks) {
  const Architecture& arch = model_.architecture();
  if (request.prompt.empty()) {
    return fail(ErrorCode::kInvalidArgument, "the prompt is empty: give at least one token");
  }
  for (std::int32_t id : request.prompt) {
    if (id < 0 || id >= arch.vocab_size) {
      return fail(ErrorCode::kInvalidArgument, "prompt token id " + std::to_string(id) +
                                                   " is outside the vocabulary of " +
                                                   std::to_string(arch.vocab_size));
    }
  }
  const std::int64_t length = static_cast<std::int64_t>(request.prompt.size()) + request.max_tokens;
  if (request.max_tokens < 1 || length > arch.max_positions) {
    return fail(ErrorCode::kInvalidArgument,
                "prompt of " + std::to_string(request.prompt.size()) + " tokens and max_tokens " +
                    std::to_string(request.max_tokens) + " do not fit the model's context of " +
                    std::to_string(arch.max_positions) + " tokens");
  }
  if (KvCache::blocks_for(length) > kv_.num_blocks()) {
    return fail(ErrorCode::kInvalidArgument,
                "the request needs " + std::to_string(length) +
                    " tokens of KV cache, this router has " +
                    std::to_string(std::int64_t{kv_.num_blocks()} * kernels::kKvBlockSize) +
                    " (--kv-cache-bytes)");
  }
  Sequence sequence;
  sequence.tokens = request.prompt;
  sequence.request = std::move(request);
  sequence.callbacks = std::move(callbacks);
  RequestId id = 0;
  {
    const std::lock_guard lock(mutex_);
    if (stop_ || drain_until_ != Deadline::max()) return shutting_down();
    const std::string& name = sequence.request.deployment;
    const auto it = served_.find(name);
    if (it == served_.end() && epoch_.value == 0) {
      return fail(ErrorCode::kUnavailable, "no experts are loaded yet: try again in a moment");
    }
    if (it == served_.end() || it->second.deployment.draining) {
      return fail(ErrorCode::kNotFound, name.empty() ? "the full model is not deployed"
                                                     : "there is no deployment '" + name + "'");
    }
    if (waiting_.size() >= static_cast<std::size_t>(options_.max_queue)) {
      return fail(
          ErrorCode::kResourceExhausted,
          std::to_string(waiting_.size()) + " requests are waiting already: try again later");
    }
    sequence.mask = it->second.mask;
    id = sequence.id = next_id_++;
    ++requests_[name];
    waiting_.push_back(std::move(sequence));
  }
  backend_.interrupt();
  return id;
}

void Engine::cancel(RequestId id) {
  {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
  }
  backend_.interrupt();
}

void Engine::drain(Deadline deadline) {
  {
    const std::lock_guard lock(mutex_);
    drain_until_ = deadline;
  }
  backend_.interrupt();
}

void Engine::apply(EpochView view, std::function<void(Epoch, std::vector<WorkerId>)> on_active) {
  {
    const std::lock_guard lock(mutex_);
    pending_view_ = PendingView{std::move(view), std::move(on_active)};
  }
  backend_.interrupt();
}

std::vector<Engine::DeploymentInfo> Engine::deployments() const {
  const std::lock_guard lock(mutex_);
  std::vector<DeploymentInfo> infos;
  for (const auto& [name, served] : served_) infos.push_back({name, served.deployment.draining});
  return infos;
}

Epoch Engine::epoch() const {
  const std::lock_guard lock(mutex_);
  return epoch_;
}

Engine::Load Engine::load() const {
  const std::lock_guard lock(mutex_);
  std::uint64_t all = 0;
  for (const auto& [name, count] : requests_) all += count;
  return {epoch_, all - waiting_.size(), waiting_.size(), requests_};
}

void Engine::apply_pending_view() {
  std::optional<PendingView> pending;
  {
    const std::lock_guard lock(mutex_);
    pending.swap(pending_view_);
  }
  if (!pending) return;
  const EpochView& view = pending->view;
  std::vector<WorkerId> lost = backend_.apply(view);
  {
    const std::lock_guard lock(mutex_);
    std::map<std::string, Served> served;
    for (const Deployment& deployment : view.deployments) {
      const auto old = served_.find(deployment.name);
      const bool same = old != served_.end() && old->second.deployment.kept == deployment.kept;
      served[deployment.name] = {
          deployment,
          same ? old->second.mask : make_gate_mask(deployment.kept, model_.architecture())};
    }
    served_ = std::move(served);
    epoch_ = view.placement.epoch;
  }
  log_info("epoch {} is active: {} workers, {} deployments, {} lost", view.placement.epoch.value,
           view.workers.size(), view.deployments.size(), lost.size());
  if (pending->on_active) pending->on_active(view.placement.epoch, std::move(lost));
}

void Engine::finish(Sequence& sequence, FinishReason reason, Error error) {
  kv_.release(sequence.blocks);
  sequence.blocks.clear();
  Finish finish;
  finish.reason = reason;
  finish.error = std::move(error);
  finish.prompt_tokens = static_cast<std::int32_t>(sequence.request.prompt.size());
  finish.completion_tokens = sequence.generated();
  if (!model_.architecture().physically_pruned && sequence.computed > 0) {
    finish.masked_mass = sequence.masked_mass / sequence.computed;
  }
  {
    const std::lock_guard lock(mutex_);
    auto it = requests_.find(sequence.request.deployment);
    if (--it->second == 0) requests_.erase(it);
  }
  if (observer_ != nullptr) observer_->on_request_end(sequence.request.deployment, finish);
  sequence.callbacks.on_finish(finish);
}

/// Takes out what was cancelled or has passed its deadline or the drain's, waiting or running.
void Engine::sweep() {
  std::vector<RequestId> cancelled;
  std::deque<Sequence> ended;
  const Clock::time_point now = Clock::now();
  bool drained = false;
  const auto is_over = [&](const Sequence& sequence) {
    return sequence.cancelled || drained || now >= sequence.request.deadline;
  };
  {
    const std::lock_guard lock(mutex_);
    cancelled.swap(cancelled_);
    drained = now >= drain_until_;
    for (auto it = waiting_.begin(); it != waiting_.end();) {
      it->cancelled = std::find(cancelled.begin(), cancelled.end(), it->id) != cancelled.end();
      if (is_over(*it)) {
        ended.push_back(std::move(*it));
        it = waiting_.erase(it);
      } else {
        ++it;
      }
    }
  }
  const auto end = [&](Sequence& sequence) {
    if (sequence.cancelled) {
      finish(sequence, FinishReason::kCancelled);
    } else if (drained) {
      finish(sequence, FinishReason::kError, shutting_down());
    } else {
      finish(
          sequence, FinishReason::kError,
          fail(ErrorCode::kDeadlineExceeded, "the request's deadline passed after " +
                                                 std::to_string(sequence.generated()) + " tokens"));
    }
  };
  for (Sequence& sequence : ended) end(sequence);
  for (auto it = running_.begin(); it != running_.end();) {
    it->cancelled = std::find(cancelled.begin(), cancelled.end(), it->id) != cancelled.end();
    if (is_over(*it)) {
      end(*it);
      it = running_.erase(it);
    } else {
      ++it;
    }
  }
}

void Engine::admit() {
  const std::lock_guard lock(mutex_);
  while (!waiting_.empty() && running_.size() < static_cast<std::size_t>(options_.max_num_seqs)) {
    Sequence& next = waiting_.front();
    auto blocks = kv_.allocate(KvCache::blocks_for(static_cast<std::int64_t>(next.tokens.size()) +
                                                   next.request.max_tokens));
    if (!blocks) break;  // first come, first served: nobody overtakes the one that waits for blocks
    next.blocks = std::move(*blocks);
    running_.push_back(std::move(next));
    waiting_.pop_front();
  }
}

bool Engine::step() {
  struct Part {
    Sequence* sequence;
    std::int32_t count;
    bool wants_token;
  };
  std::vector<Part> parts;
  std::vector<SequenceChunk> chunks;
  std::int32_t budget = options_.max_num_batched_tokens;
  const auto take = [&](Sequence& sequence, std::int32_t count) {
    const auto pending = static_cast<std::int32_t>(sequence.tokens.size()) - sequence.computed;
    const bool last = count == pending;
    parts.push_back({&sequence, count, last});
    chunks.push_back(
        {std::span(sequence.tokens)
             .subspan(static_cast<std::size_t>(sequence.computed), static_cast<std::size_t>(count)),
         sequence.computed, sequence.blocks, sequence.mask.get(),
         last ? SequenceChunk::Logits::kLast : SequenceChunk::Logits::kNone});
    budget -= count;
  };
  for (Sequence& sequence : running_) {
    if (sequence.generated() > 0) take(sequence, 1);  // decodes always run, whatever the budget
  }
  for (Sequence& sequence : running_) {
    if (sequence.generated() > 0 || budget <= 0) continue;
    take(sequence,
         std::min(budget, static_cast<std::int32_t>(sequence.tokens.size()) - sequence.computed));
  }
  if (chunks.empty()) return false;

  const Clock::time_point begin = Clock::now();
  backend_.begin_step(++step_count_);
  const StepResult result = model_.forward(chunks, kv_, backend_);
  if (observer_ != nullptr) {
    observer_->on_step(std::chrono::duration<double>(Clock::now() - begin).count(),
                       result.failed.size());
    observer_->on_experts(result.topk_ids);
    observer_->on_backend(backend_.stats());
  }

  const auto vocab = static_cast<std::size_t>(model_.architecture().vocab_size);
  std::size_t row = 0;
  std::size_t logit_row = 0;
  for (const Part& part : parts) {
    Sequence& sequence = *part.sequence;
    bool failed = false;
    for (std::int32_t i = 0; i < part.count; ++i, ++row) {
      failed = failed || result.failed[row] != 0;
      sequence.masked_mass += result.masked_mass[row];
    }
    sequence.computed += part.count;
    const std::size_t logits_at = logit_row * vocab;
    logit_row += part.wants_token ? 1 : 0;
    if (failed) {
      finish(sequence, FinishReason::kError, backend_.failure());
      sequence.id = 0;  // taken out below
      continue;
    }
    if (!part.wants_token) continue;
    const auto logits = std::span(result.logits).subspan(logits_at, vocab);
    if (!all_finite(logits)) {
      finish(sequence, FinishReason::kError,
             fail(ErrorCode::kDataLoss,
                  "the model computed logits that are not finite: its weights are damaged"));
      sequence.id = 0;
      continue;
    }
    const std::int32_t token =
        sample(logits, sequence.request.sampling, static_cast<std::uint64_t>(sequence.generated()));
    sequence.tokens.push_back(token);
    const auto& stops = sequence.request.stop_ids;
    const bool stop = std::find(stops.begin(), stops.end(), token) != stops.end();
    if (!stop) sequence.callbacks.on_token(token);
    if (stop || sequence.generated() == sequence.request.max_tokens) {
      finish(sequence, stop ? FinishReason::kStop : FinishReason::kLength);
      sequence.id = 0;
    }
  }
  running_.remove_if([](const Sequence& sequence) { return sequence.id == 0; });
  return true;
}

void Engine::loop() {
  while (!stop_) {
    apply_pending_view();
    sweep();
    admit();
    if (step()) continue;
    backend_.idle_wait(Clock::now() + kIdleWait);
  }
  for (Sequence& sequence : running_) finish(sequence, FinishReason::kError, shutting_down());
  running_.clear();
  std::deque<Sequence> waiting;
  {
    const std::lock_guard lock(mutex_);
    waiting.swap(waiting_);
  }
  for (Sequence& sequence : waiting) finish(sequence, FinishReason::kError, shutting_down());
}

}  // namespace moiety
