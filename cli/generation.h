#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cli/generate_jobs.h"
#include "model/tokenizer.h"
#include "router/choice_text.h"
#include "router/engine.h"

namespace moiety::cli {

/// What came of a job.
struct Answer {
  GenerateJob job;
  std::optional<ChoiceText> choice;   ///< with a tokenizer
  std::string text;                   ///< certain and not taken; ids without a tokenizer
  std::vector<AnswerToken> logprobs;  ///< where the job asks for them
  std::vector<std::int32_t> ids;
  StopReason stop_reason;
  std::optional<Finish> finish;
  std::optional<Clock::time_point> first_token, last_token;
  Engine::RequestId id = 0;
};

/// Jobs under way on one engine. Every job that was submitted must be followed to its end before
/// this goes away: the engine calls back.
class Generation {
 public:
  /// `engine` and `tokenizer` (null: answers are ids) outlive it.
  Generation(Engine& engine, const Tokenizer* tokenizer, std::vector<GenerateJob> jobs);

  /// Starts a job. A refusal is its outcome.
  void submit(std::size_t index);

  /// Hands over what is new of job `index` until it has ended. Ctrl-C cancels all jobs.
  void follow(std::size_t index, const std::function<void(const std::string& text)>& on_text);

  /// Ends all jobs soon; they are still followed to their ends.
  void cancel();

  std::size_t size() const { return answers_.size(); }
  /// Of a job that was followed to its end.
  const Answer& answer(std::size_t index) const { return answers_[index]; }

 private:
  TokenAction on_token(Answer& answer, const SampledToken& token);
  void on_finish(Answer& answer, const Finish& finish);

  Engine& engine_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Answer> answers_;  // guarded by mutex_ where the jobs run
};

/// Blocks until the engine serves `view`.
void activate(Engine& engine, EpochView view);

}  // namespace moiety::cli
