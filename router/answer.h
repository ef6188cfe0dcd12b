#pragma once

#include <boost/json/fwd.hpp>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "http/server.h"
#include "model/tokenizer.h"
#include "router/choice_text.h"
#include "router/engine.h"
#include "router/openai_json.h"

namespace moiety {

/// What one HTTP request wants to hear, besides the tokens.
struct AnswerOptions {
  std::string model;       ///< as the client called it
  std::string deployment;  ///< "" = the full model
  bool stream = false;
  bool include_usage = false;  ///< streams: a last chunk with the token counts
  ChoiceTextOptions text;
};

/// One choice of an answer: a request of its own to the step loop.
struct ChoiceRequest {
  GenerateRequest generate;
  std::string echo;             ///< comes before the generated text
  bool first_of_prompt = true;  ///< its prompt's tokens count in `usage`
};

/// One HTTP answer under way: its choices' tokens become text, and text an answer or a stream.
///
/// Lives from start() to the last choice's end, shared by the step loop's callbacks. The answer is
/// made whole or refused whole: nothing is sent before every choice was accepted. A choice that
/// fails ends the answer with its error; a client that leaves, or reads too slowly, cancels all
/// choices.
class Answer : public std::enable_shared_from_this<Answer> {
 public:
  /// Submits all choices. On an error (Engine::submit's) nothing was sent and the ones submitted
  /// before are cancelled: `responder` is still the caller's to answer. `engine` and `tokenizer`
  /// outlive the answer.
  static Result<void> start(Engine& engine,
                            const Tokenizer& tokenizer,
                            std::unique_ptr<AnswerFormat> format,
                            AnswerOptions options,
                            std::vector<ChoiceRequest> choices,
                            std::shared_ptr<http::Responder> responder);

 private:
  struct Choice {
    ChoiceText text;
    std::string echo;
    bool first_of_prompt = true;
    Engine::RequestId id = 0;
    bool begun = false;  // its first part was sent
    TextPiece taken;     // certain and not sent: in plain answers all of it
    std::optional<Finish> finish;
  };

  Answer(Engine& engine,
         std::unique_ptr<AnswerFormat> format,
         AnswerOptions options,
         std::shared_ptr<http::Responder> responder);
  TokenAction on_token(std::size_t index, const SampledToken& sampled);
  void on_finish(std::size_t index, const Finish& finish);
  /// Every choice was accepted: lets out what has gathered.
  void begin_sending();

  // All below with mutex_ held.
  void take_text(Choice& choice);
  void send_part(std::size_t index);
  void end_stream();
  void send_whole();
  void fail_all(const Error& error);
  void cancel_all();
  void respond(http::Response response);
  void open_stream();
  void send_frame(std::string_view data);
  ChoicePart part(std::size_t index);
  boost::json::object usage() const;

  Engine& engine_;
  const std::unique_ptr<AnswerFormat> format_;
  const AnswerOptions options_;
  const std::shared_ptr<http::Responder> responder_;
  const std::string id_;
  const std::int64_t created_;

  std::mutex mutex_;
  std::vector<Choice> choices_;
  std::size_t num_finished_ = 0;
  bool over_ = false;         // answered, failed or refused: what still comes is dropped
  bool stream_open_ = false;  // its head was sent, or will be by begin_sending()
  // Until begin_sending() nothing goes out; it gathers here.
  bool sending_ = false;
  std::optional<http::Response> early_response_;
  std::string early_frames_;
};

}  // namespace moiety
