#include "cli/generation.h"

#include <algorithm>
#include <iterator>

namespace moiety::cli {
namespace {

void take(Answer& answer) {
  TextPiece piece = answer.choice->take();
  answer.text += piece.text;
  std::move(piece.tokens.begin(), piece.tokens.end(), std::back_inserter(answer.logprobs));
}

}  // namespace

Generation::Generation(Engine& engine, const Tokenizer* tokenizer, std::vector<GenerateJob> jobs)
    : engine_(engine), answers_(jobs.size()) {
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    answers_[i].job = std::move(jobs[i]);
    if (tokenizer != nullptr) answers_[i].choice.emplace(*tokenizer, answers_[i].job.text);
  }
}

void Generation::submit(std::size_t index) {
  Answer& answer = answers_[index];
  const auto id = engine_.submit(
      answer.job.request,
      {[this, &answer](const SampledToken& token) { return on_token(answer, token); },
       [this, &answer](const Finish& finish) { on_finish(answer, finish); }});
  const std::lock_guard lock(mutex_);
  if (id) {
    answer.id = *id;
    return;
  }
  answer.finish.emplace();
  answer.finish->reason = FinishReason::kError;
  answer.finish->error = id.error();
}

void Generation::follow(std::size_t index,
                        const std::function<void(const std::string& text)>& on_text) {
  Answer& answer = answers_[index];
  for (bool ended = false; !ended;) {
    std::string text;
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, std::chrono::milliseconds(100),
                     [&] { return answer.finish || !answer.text.empty(); });
      ended = answer.finish.has_value();
      text.swap(answer.text);
    }
    if (!text.empty()) on_text(text);
    if (interrupted()) cancel();
  }
}

TokenAction Generation::on_token(Answer& answer, const SampledToken& token) {
  const std::lock_guard lock(mutex_);
  answer.last_token = Clock::now();
  if (!answer.first_token) answer.first_token = answer.last_token;
  answer.ids.push_back(token.token);
  bool stop = false;
  if (answer.choice) {
    stop = answer.choice->push(token);
    if (stop) answer.stop_reason = answer.choice->stop_reason();
    take(answer);
  } else {
    const std::vector<std::int32_t>& stops = answer.job.text.stop_token_ids;
    stop = std::find(stops.begin(), stops.end(), token.token) != stops.end();
    if (stop) answer.stop_reason = token.token;
    if (answer.job.text.keep_tokens) answer.logprobs.push_back({token, 0});
    if (answer.ids.size() > 1) answer.text += ' ';
    answer.text += std::to_string(token.token);
  }
  wake_.notify_all();
  return stop ? TokenAction::kStop : TokenAction::kContinue;
}

void Generation::on_finish(Answer& answer, const Finish& finish) {
  const std::lock_guard lock(mutex_);
  if (answer.choice) {
    answer.choice->finish();
    take(answer);
  }
  answer.finish = finish;
  wake_.notify_all();
}

void Generation::cancel() {
  std::vector<Engine::RequestId> ids;
  {
    const std::lock_guard lock(mutex_);
    for (const Answer& answer : answers_) ids.push_back(answer.id);
  }
  for (const Engine::RequestId id : ids) engine_.cancel(id);
}

void activate(Engine& engine, EpochView view) {
  std::mutex mutex;
  std::condition_variable wake;
  bool active = false;
  engine.apply(std::move(view), [&](Epoch, std::vector<WorkerId>) {
    const std::lock_guard lock(mutex);
    active = true;
    wake.notify_all();
  });
  std::unique_lock lock(mutex);
  wake.wait(lock, [&] { return active; });
}

}  // namespace moiety::cli
