#include "router/answer.h"

#include <boost/json.hpp>
#include <chrono>
#include <random>

namespace moiety {
namespace json = boost::json;
namespace {

/// A client that reads so much slower than we write is cut off.
constexpr std::size_t kMaxUnsentBytes = 1u << 20;

std::int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string random_id(std::string_view prefix) {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  std::string id(prefix);
  id += std::to_string(generator());
  return id;
}

json::object usage_of(std::int64_t prompt, std::int64_t cached, std::int64_t completion) {
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion},
          {"prompt_tokens_details", json::object{{"cached_tokens", cached}}}};
}

/// What the API adds to OpenAI's answers. The masked mass of several choices is the mean over all
/// tokens that went through the model: the last one of each choice did not.
json::object moiety_details(const AnswerOptions& options,
                            const std::vector<const Finish*>& finishes) {
  double sum = 0;
  double tokens = 0;
  bool known = true;
  std::int32_t masked_experts = 0;
  for (const Finish* finish : finishes) {
    const double count = std::max(1, finish->prompt_tokens + finish->completion_tokens - 1);
    known = known && finish->masked_mass.has_value();
    sum += finish->masked_mass.value_or(0) * count;
    tokens += count;
    masked_experts = std::max(masked_experts, finish->masked_experts);
  }
  json::object details;
  // The full model is the deployment of the served name itself.
  details["deployment"] = options.deployment.empty() ? options.model : options.deployment;
  if (finishes.size() == 1 && known) sum = *finishes[0]->masked_mass, tokens = 1;
  details["masked_mass"] = known && tokens > 0 ? json::value(sum / tokens) : json::value(nullptr);
  // Only where experts were missing that the deployment has: the answer is not quite its own.
  if (masked_experts > 0) details["masked_experts"] = masked_experts;
  return details;
}

}  // namespace

Answer::Answer(Engine& engine,
               std::unique_ptr<AnswerFormat> format,
               AnswerOptions options,
               std::shared_ptr<http::Responder> responder)
    : engine_(engine),
      format_(std::move(format)),
      options_(std::move(options)),
      responder_(std::move(responder)),
      id_(random_id(format_->id_prefix())),
      created_(unix_seconds()) {}

Result<void> Answer::start(Engine& engine,
                           const Tokenizer& tokenizer,
                           std::unique_ptr<AnswerFormat> format,
                           AnswerOptions options,
                           std::vector<ChoiceRequest> choices,
                           std::shared_ptr<http::Responder> responder) {
  const std::shared_ptr<Answer> self(
      new Answer(engine, std::move(format), std::move(options), std::move(responder)));
  for (ChoiceRequest& choice : choices) {
    self->choices_.push_back({.text = ChoiceText(tokenizer, self->options_.text),
                              .echo = std::move(choice.echo),
                              .first_of_prompt = choice.first_of_prompt,
                              .taken = {},
                              .finish = {}});
  }
  for (std::size_t i = 0; i < choices.size(); ++i) {
    auto id = engine.submit(
        std::move(choices[i].generate),
        {[self, i](const SampledToken& sampled) { return self->on_token(i, sampled); },
         [self, i](const Finish& finish) { self->on_finish(i, finish); }});
    const std::lock_guard lock(self->mutex_);
    if (!id) {
      self->over_ = true;
      self->cancel_all();
      return id.error();
    }
    self->choices_[i].id = *id;
  }
  self->begin_sending();
  return {};
}

void Answer::begin_sending() {
  std::vector<Engine::RequestId> ids;
  {
    const std::lock_guard lock(mutex_);
    for (const Choice& choice : choices_) ids.push_back(choice.id);
    sending_ = true;
    if (early_response_) {
      responder_->respond(std::move(*early_response_));
    } else if (stream_open_) {
      stream_open_ = false;
      open_stream();
      if (!early_frames_.empty()) responder_->write(std::move(early_frames_));
      if (over_) responder_->end();
    }
  }
  responder_->on_disconnect([&engine = engine_, ids = std::move(ids)] {
    for (const Engine::RequestId id : ids) engine.cancel(id);
  });
}

TokenAction Answer::on_token(std::size_t index, const SampledToken& sampled) {
  const std::lock_guard lock(mutex_);
  if (over_) return TokenAction::kStop;
  Choice& choice = choices_[index];
  const bool ends = choice.text.push(sampled);
  if (options_.stream) {
    open_stream();
    take_text(choice);
    // The end comes with on_finish, which says how it ended.
    if (!ends && (!choice.taken.text.empty() || !choice.taken.tokens.empty())) send_part(index);
    if (responder_->unsent_bytes() > kMaxUnsentBytes) cancel_all();
  }
  return ends ? TokenAction::kStop : TokenAction::kContinue;
}

void Answer::on_finish(std::size_t index, const Finish& finish) {
  const std::lock_guard lock(mutex_);
  Choice& choice = choices_[index];
  choice.id = 0;
  if (over_) return;
  if (finish.reason == FinishReason::kError) return fail_all(finish.error);
  choice.text.finish();
  take_text(choice);
  choice.finish = finish;
  ++num_finished_;
  if (options_.stream) {
    open_stream();
    send_part(index);
    if (num_finished_ == choices_.size()) end_stream();
  } else if (num_finished_ == choices_.size()) {
    send_whole();
  }
}

/// Adds what became certain to what waits to be sent.
void Answer::take_text(Choice& choice) {
  TextPiece piece = choice.text.take();
  choice.taken.text += piece.text;
  for (AnswerToken& token : piece.tokens) choice.taken.tokens.push_back(std::move(token));
}

/// Takes what waits to be sent.
ChoicePart Answer::part(std::size_t index) {
  Choice& choice = choices_[index];
  ChoicePart part;
  part.index = static_cast<std::int32_t>(index);
  part.piece = std::move(choice.taken);
  choice.taken = {};
  part.begins = !choice.begun;
  if (!choice.begun) part.piece.text.insert(0, choice.echo);
  choice.begun = true;
  if (choice.finish) {
    part.finish_reason = finish_reason_name(choice.finish->reason);
    part.stop_reason = choice.text.stop_reason();
  }
  return part;
}

void Answer::send_part(std::size_t index) {
  json::object body{{"id", id_},
                    {"object", format_->object(true)},
                    {"created", created_},
                    {"model", options_.model}};
  body["choices"] = json::array{format_->choice(part(index), true)};
  if (options_.include_usage) body["usage"] = nullptr;
  const auto& finish = choices_[index].finish;
  if (finish) body["moiety"] = moiety_details(options_, {&*finish});
  send_frame(json::serialize(body));
}

void Answer::end_stream() {
  if (options_.include_usage) {
    json::object body{{"id", id_},
                      {"object", format_->object(true)},
                      {"created", created_},
                      {"model", options_.model},
                      {"choices", json::array()}};
    body["usage"] = usage();
    send_frame(json::serialize(body));
  }
  send_frame("[DONE]");
  over_ = true;
  if (sending_) responder_->end();
}

void Answer::send_whole() {
  json::object body{{"id", id_},
                    {"object", format_->object(false)},
                    {"created", created_},
                    {"model", options_.model}};
  json::array list;
  std::vector<const Finish*> finishes;
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    list.push_back(format_->choice(part(i), false));
    finishes.push_back(&*choices_[i].finish);
  }
  body["choices"] = std::move(list);
  body["usage"] = usage();
  body["moiety"] = moiety_details(options_, finishes);
  over_ = true;
  respond({200, "application/json", json::serialize(body) + "\n", {}});
}

json::object Answer::usage() const {
  std::int64_t prompt = 0, cached = 0, completion = 0;
  for (const Choice& choice : choices_) {
    if (choice.first_of_prompt) {
      prompt += choice.finish->prompt_tokens;
      cached += choice.finish->cached_tokens;
    }
    completion += choice.finish->completion_tokens;
  }
  return usage_of(prompt, cached, completion);
}

void Answer::fail_all(const Error& error) {
  over_ = true;
  cancel_all();
  if (!stream_open_) return respond(error_response(error));
  send_frame(error_envelope(error.message, "server_error", "", error_info(error.code).name));
  send_frame("[DONE]");
  if (sending_) responder_->end();
}

void Answer::cancel_all() {
  for (const Choice& choice : choices_) {
    if (choice.id != 0) engine_.cancel(choice.id);
  }
}

void Answer::respond(http::Response response) {
  if (sending_) {
    responder_->respond(std::move(response));
  } else {
    early_response_ = std::move(response);
  }
}

void Answer::open_stream() {
  if (stream_open_) return;
  stream_open_ = true;
  if (!sending_) return;
  responder_->start_stream(200, "text/event-stream", {{"Cache-Control", "no-cache"}});
}

void Answer::send_frame(std::string_view data) {
  std::string frame = "data: ";
  frame += data;
  frame += "\n\n";
  if (sending_) {
    responder_->write(std::move(frame));
  } else {
    early_frames_ += frame;
  }
}

}  // namespace moiety
