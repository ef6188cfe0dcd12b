#include "router/engine.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "common/check.h"
#include "common/log.h"

namespace moiety {
namespace {

// Only a limit: whatever there is to do interrupts it.
constexpr std::chrono::milliseconds kIdleWait{1000};

bool all_finite(std::span<const float> values) {
  constexpr std::uint32_t kExponent = 0x7f800000;  // all ones: infinite or not a number
  std::uint32_t largest = 0;
  for (const float v : values)
    largest = std::max(largest, std::bit_cast<std::uint32_t>(v) & kExponent);
  return largest != kExponent;
}

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

/// Of all deployments.
std::uint64_t total(const std::map<std::string, std::uint64_t>& counts) {
  std::uint64_t sum = 0;
  for (const auto& [name, count] : counts) sum += count;
  return sum;
}

Error shutting_down() { return fail(ErrorCode::kUnavailable, "the server is shutting down"); }

}  // namespace

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
      scheduler_(kv_.num_blocks(),
                 {options.max_num_seqs, options.max_num_batched_tokens, options.prefix_cache}),
      micro_batches_(options.micro_batches),
      seats_(scheduler_.seats()),
      scheduler_stats_(scheduler_.stats()),
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
    return fail(ErrorCode::kInvalidArgument, "the request needs " + std::to_string(length) +
                                                 " tokens of KV cache, this router has " +
                                                 std::to_string(kv_cache_tokens()) +
                                                 " (--kv-cache-bytes)");
  }
  auto sequence = std::make_unique<Sequence>();
  sequence->prompt_size = static_cast<std::int32_t>(request.prompt.size());
  sequence->tokens = std::move(request.prompt);
  sequence->request = std::move(request);
  sequence->callbacks = std::move(callbacks);
  sequence->submitted = Clock::now();
  RequestId id = 0;
  {
    const std::lock_guard lock(mutex_);
    if (stop_ || drain_until_ != Deadline::max()) return shutting_down();
    const std::string& name = sequence->request.deployment;
    const auto it = served_.find(name);
    if (it == served_.end() && epoch_.value == 0) {
      return fail(ErrorCode::kUnavailable, "no experts are loaded yet: try again in a moment");
    }
    if (it == served_.end() || it->second.deployment.draining) {
      return fail(ErrorCode::kNotFound, name.empty() ? "the full model is not deployed"
                                                     : "there is no deployment '" + name + "'");
    }
    // Whoever has a seat does not wait, whether the loop has looked or not; those parked do, and
    // who comes after them in their deployment may need the same experts.
    const auto own = parked_.find(name);
    const std::uint64_t own_parked = own == parked_.end() ? 0 : own->second;
    const std::uint64_t in_line = total(requests_) - total(parked_);
    const bool has_seat = in_line < seats_ && own_parked == 0;
    const std::uint64_t waiting = own_parked + (in_line > seats_ ? in_line - seats_ : 0);
    if (!has_seat && waiting >= static_cast<std::size_t>(options_.max_queue)) {
      return fail(ErrorCode::kResourceExhausted,
                  std::to_string(waiting) + " requests are waiting already: try again later");
    }
    sequence->deployed = sequence->mask = it->second.mask;
    sequence->on_missing = it->second.deployment.on_missing;
    sequence->root = it->second.root;
    id = sequence->id = next_id_++;
    ++requests_[name];
    arrivals_.push_back(std::move(sequence));
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
  backend_.announce(view);
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
  const std::uint64_t waiting = waiting_ + arrivals_.size();
  Load load;
  load.epoch = epoch_;
  load.running = total(requests_) - waiting;
  load.waiting = waiting;
  load.parked = total(parked_);
  load.retries = retries_;
  load.masked = masked_;
  load.per_deployment = requests_;
  load.scheduler = scheduler_stats_;
  load.held = backend_.held();
  return load;
}

std::int64_t Engine::kv_cache_tokens() const {
  return std::int64_t{kv_.num_blocks()} * kernels::kKvBlockSize;
}

void Engine::take_arrivals() {
  const std::lock_guard lock(mutex_);
  for (std::unique_ptr<Sequence>& sequence : arrivals_) {
    next_deadline_ = std::min(next_deadline_, sequence->request.deadline);
    scheduler_.add(std::move(sequence));
  }
  arrivals_.clear();
  waiting_ = scheduler_.num_waiting();
}

void Engine::apply_pending_view() {
  std::optional<PendingView> pending;
  {
    const std::lock_guard lock(mutex_);
    pending.swap(pending_view_);
  }
  if (pending) {
    backend_.apply(pending->view);
    switching_ = std::move(pending);
  }
  if (!switching_) return;
  std::optional<std::vector<WorkerId>> lost = backend_.applied();
  if (!lost) return;
  const PendingView done = std::move(*switching_);
  switching_.reset();
  activate(done.view, lost->size());
  if (done.on_active) done.on_active(done.view.placement.epoch, std::move(*lost));
}

void Engine::activate(const EpochView& view, std::size_t num_lost) {
  {
    const std::lock_guard lock(mutex_);
    std::map<std::string, Served> served;
    for (const Deployment& deployment : view.deployments) {
      const auto old = served_.find(deployment.name);
      const bool same = old != served_.end() && old->second.deployment.kept == deployment.kept;
      if (same) {
        served[deployment.name] = {deployment, old->second.mask, old->second.root};
        continue;
      }
      std::shared_ptr<const GateMask> mask = make_gate_mask(deployment.kept, model_.architecture());
      const BlockKey root = prefix_root(mask.get());
      served[deployment.name] = {deployment, std::move(mask), root};
    }
    served_ = std::move(served);
    epoch_ = view.placement.epoch;
  }
  end_orphans(view);
  log_info("epoch {} is active: {} workers, {} deployments, {} lost", view.placement.epoch.value,
           view.workers.size(), view.deployments.size(), num_lost);
}

void Engine::publish_load() {
  const std::lock_guard lock(mutex_);
  waiting_ = scheduler_.num_waiting();
  seats_ = scheduler_.seats();
  scheduler_stats_ = scheduler_.stats();
}

void Engine::finish(Sequence& sequence, FinishReason reason, Error error) {
  Finish finish;
  finish.reason = reason;
  finish.error = std::move(error);
  finish.prompt_tokens = sequence.prompt_size;
  finish.cached_tokens = sequence.cached_tokens;
  finish.completion_tokens = sequence.generated();
  finish.masked_experts = sequence.masked_experts;
  if (!model_.architecture().physically_pruned && sequence.computed > 0) {
    finish.masked_mass =
        std::accumulate(sequence.masked_mass.begin(), sequence.masked_mass.end(), 0.0) /
        sequence.computed;
  }
  const bool was_parked = sequence.state == Sequence::State::kParked;
  scheduler_.end(sequence);
  {
    const std::lock_guard lock(mutex_);
    const std::string& name = sequence.request.deployment;
    if (--requests_.at(name) == 0) requests_.erase(name);
    if (was_parked && --parked_.at(name) == 0) parked_.erase(name);
    waiting_ = scheduler_.num_waiting();
    scheduler_stats_ = scheduler_.stats();
  }
  if (observer_ != nullptr) observer_->on_request_end(sequence.request.deployment, finish);
  sequence.callbacks.on_finish(finish);
}

/// Ends what was cancelled or has passed its deadline or the drain's, waiting or running.
void Engine::sweep() {
  const Clock::time_point now = Clock::now();
  bool drained = false;
  cancelled_now_.clear();
  {
    const std::lock_guard lock(mutex_);
    cancelled_now_.swap(cancelled_);
    drained = now >= drain_until_;
  }
  if (cancelled_now_.empty() && !drained && now < next_deadline_) return;
  std::sort(cancelled_now_.begin(), cancelled_now_.end());
  next_deadline_ = Clock::time_point::max();
  scheduler_.for_each([&](Sequence& sequence) {
    if (std::binary_search(cancelled_now_.begin(), cancelled_now_.end(), sequence.id)) {
      finish(sequence, FinishReason::kCancelled);
    } else if (drained) {
      finish(sequence, FinishReason::kError, shutting_down());
    } else if (now >= sequence.request.deadline) {
      finish(
          sequence, FinishReason::kError,
          fail(ErrorCode::kDeadlineExceeded, "the request's deadline passed after " +
                                                 std::to_string(sequence.generated()) + " tokens"));
    } else {
      next_deadline_ = std::min(next_deadline_, sequence.request.deadline);
    }
  });
}

bool Engine::step() {
  parts_ = scheduler_.plan();
  publish_load();
  if (parts_.empty()) return false;
  chunks_.clear();
  const Clock::time_point begin = Clock::now();
  for (const Scheduler::Part& part : parts_) {
    const Sequence& sequence = *part.sequence;
    chunks_.push_back(
        {std::span(sequence.tokens)
             .subspan(static_cast<std::size_t>(sequence.computed),
                      static_cast<std::size_t>(part.count)),
         sequence.computed, sequence.blocks, sequence.mask.get(),
         part.wants_token ? SequenceChunk::Logits::kLast : SequenceChunk::Logits::kNone});
    if (part.starts && observer_ != nullptr) {
      observer_->on_start(seconds_between(sequence.submitted, begin));
    }
  }
  backend_.begin_step(++step_count_);
  std::size_t rows = 0;
  for (const SequenceChunk& chunk : chunks_) rows += chunk.tokens.size();
  StepOptions step_options;
  step_options.micro_batches = micro_batches_.choose(rows);
  const StepResult result = model_.forward(chunks_, kv_, backend_, step_options);
  const double seconds = seconds_between(begin, Clock::now());
  const BackendStats stats = backend_.stats();
  micro_batches_.add(rows, step_options.micro_batches, seconds, stats.blocked);
  if (observer_ != nullptr) {
    observer_->on_step(seconds, rows);
    observer_->on_experts(result.topk_ids);
    observer_->on_backend(stats);
  }
  sample_rows(result);
  deliver(result);
  return true;
}

/// Chooses the tokens of all sequences at once, in the pool: `samples_`, in order of their parts.
void Engine::sample_rows(const StepResult& result) {
  const auto vocab = static_cast<std::size_t>(model_.architecture().vocab_size);
  part_failed_.assign(parts_.size(), 0);
  samples_.clear();
  std::size_t row = 0;
  std::size_t logit_row = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const Scheduler::Part& part = parts_[i];
    const auto count = static_cast<std::size_t>(part.count);
    const auto rows = std::span(result.failed).subspan(row, count);
    part_failed_[i] = *std::max_element(rows.begin(), rows.end());
    row += count;
    if (!part.wants_token) continue;
    if (part_failed_[i] == 0) samples_.push_back({i, logit_row, true, {}});
    ++logit_row;
  }
  model_.pool().parallel_for(samples_.size(), [&](std::size_t i, std::size_t) {
    Sample& out = samples_[i];
    const Sequence& sequence = *parts_[out.part].sequence;
    const auto logits = std::span(result.logits).subspan(out.logit_row * vocab, vocab);
    out.finite = all_finite(logits);
    if (!out.finite) return;
    const std::span<const std::int32_t> tokens = sequence.tokens;
    const auto prompt_size = static_cast<std::size_t>(sequence.prompt_size);
    out.token = sample(logits, sequence.request.sampling, tokens.first(prompt_size),
                       tokens.subspan(prompt_size));
  });
}

/// Records what was computed, and hands out the step's tokens in order of its parts.
void Engine::deliver(const StepResult& result) {
  const Clock::time_point now = Clock::now();
  std::size_t row = 0;
  std::size_t next_sample = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const Scheduler::Part& part = parts_[i];
    Sequence& sequence = *part.sequence;
    const auto count = static_cast<std::size_t>(part.count);
    const auto masked_mass = std::span(result.masked_mass).subspan(row, count);
    row += count;
    if (part_failed_[i] != 0) {
      handle_failure(sequence, part_failed_[i]);
      continue;
    }
    const Sample* sampled = part.wants_token ? &samples_[next_sample++] : nullptr;
    if (sampled != nullptr && !sampled->finite) {
      finish(sequence, FinishReason::kError,
             fail(ErrorCode::kDataLoss,
                  "the model computed logits that are not finite: its weights are damaged"));
      continue;
    }
    scheduler_.complete(part, masked_mass);
    if (sampled != nullptr) hand_out(sequence, sampled->token, now);
  }
}

void Engine::hand_out(Sequence& sequence, const SampledToken& sampled, Clock::time_point now) {
  if (observer_ != nullptr) {
    if (sequence.generated() == 0) {
      observer_->on_first_token(seconds_between(sequence.submitted, now));
    } else {
      observer_->on_next_token(seconds_between(sequence.last_token, now));
    }
  }
  sequence.last_token = now;
  sequence.tokens.push_back(sampled.token);
  const auto& stops = sequence.request.stop_ids;
  bool stop = std::find(stops.begin(), stops.end(), sampled.token) != stops.end();
  if (!stop) stop = sequence.callbacks.on_token(sampled) == TokenAction::kStop;
  if (stop || sequence.generated() == sequence.request.max_tokens) {
    finish(sequence, stop ? FinishReason::kStop : FinishReason::kLength);
  }
}

void Engine::loop() {
  while (!stop_) {
    apply_pending_view();
    take_arrivals();
    sweep();
    regain();
    if (!step()) backend_.idle_wait(std::min(Clock::now() + kIdleWait, next_deadline_));
  }
  take_arrivals();
  scheduler_.for_each(
      [&](Sequence& sequence) { finish(sequence, FinishReason::kError, shutting_down()); });
}

}  // namespace moiety
