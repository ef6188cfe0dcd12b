#include "router/answer.h"

#include <gmock/gmock.h>

#include <boost/json.hpp>

#include "tests/router/engine_support.h"

namespace moiety {
namespace {

namespace json = boost::json;
using testing::EngineTest;

using testing::source_path;

/// Records what an answer sends.
class Recorder final : public http::Responder {
 public:
  void respond(http::Response response) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(response_ || streaming_) << "answered twice";
    response_ = std::move(response);
    wake_.notify_all();
  }
  void start_stream(int status, std::string, std::map<std::string, std::string>) override {
    const std::lock_guard lock(mutex_);
    EXPECT_EQ(status, 200);
    EXPECT_FALSE(response_ || streaming_) << "answered twice";
    streaming_ = true;
    wake_.notify_all();
  }
  void write(std::string piece) override {
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(streaming_ && !ended_) << piece;
    written_ += piece;
    wake_.notify_all();
  }
  void end() override {
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(streaming_ && !ended_);
    ended_ = true;
    wake_.notify_all();
  }
  std::size_t unsent_bytes() const override { return unsent; }
  void on_disconnect(std::function<void()> callback) override {
    const std::lock_guard lock(mutex_);
    disconnect_ = std::move(callback);
    wake_.notify_all();
  }

  /// The client leaves, once somebody listens for that.
  void leave() {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(wait(lock, [&] { return disconnect_ != nullptr; }));
    const auto callback = disconnect_;
    lock.unlock();
    callback();
  }
  json::value wait_response(int status = 200) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(wait(lock, [&] { return response_.has_value(); })) << "no answer";
    if (!response_) return nullptr;
    EXPECT_EQ(response_->status, status);
    return json::parse(response_->body);
  }
  /// Whether it was a stream that has ended, not a response.
  bool wait_over() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(wait(lock, [&] { return ended_ || response_; })) << "no answer";
    return ended_;
  }
  void wait_stream() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(wait(lock, [&] { return !written_.empty(); }));
  }
  /// The data of all events, [DONE] included.
  std::vector<std::string> wait_end() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(wait(lock, [&] { return ended_; })) << "the stream did not end";
    std::vector<std::string> events;
    for (std::size_t at = 0; at < written_.size();) {
      const std::size_t end = written_.find("\n\n", at);
      EXPECT_EQ(written_.compare(at, 6, "data: "), 0);
      events.push_back(written_.substr(at + 6, end - at - 6));
      at = end + 2;
    }
    return events;
  }
  bool silent() {
    const std::lock_guard lock(mutex_);
    return !response_ && !streaming_;
  }

  std::atomic<std::size_t> unsent{0};

 private:
  template <class Condition>
  bool wait(std::unique_lock<std::mutex>& lock, Condition condition) {
    return wake_.wait_for(lock, std::chrono::seconds(60), condition);
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::optional<http::Response> response_;
  bool streaming_ = false, ended_ = false;
  std::string written_;
  std::function<void()> disconnect_;
};

class AnswerTest : public EngineTest {
 protected:
  static const Tokenizer& tokenizer() {
    static const Tokenizer loaded =
        std::move(Tokenizer::load(source_path("models/moiety-tiny-emo"))).value();
    return loaded;
  }

  static std::vector<ChoiceRequest> choices(std::int32_t count, std::int32_t max_tokens = 20) {
    std::vector<ChoiceRequest> list;
    for (std::int32_t i = 0; i < count; ++i) {
      ChoiceRequest choice;
      choice.generate = request(2, max_tokens);
      choice.generate.sampling.seed = static_cast<std::uint64_t>(i);
      choice.first_of_prompt = i == 0;
      list.push_back(std::move(choice));
    }
    return list;
  }

  Result<void> start(Engine& engine,
                     std::vector<ChoiceRequest> list,
                     std::shared_ptr<Recorder> recorder,
                     bool stream) {
    AnswerOptions options;
    options.model = "m";
    options.stream = stream;
    options.include_usage = stream;
    return Answer::start(engine, tokenizer(), completion_format(tokenizer(), false), options,
                         std::move(list), std::move(recorder));
  }

  static void wait_idle(const Engine& engine) {
    const auto deadline = Clock::now() + std::chrono::seconds(60);
    while (engine.load().running + engine.load().waiting > 0) {
      ASSERT_LT(Clock::now(), deadline);
      std::this_thread::yield();
    }
  }
};

TEST_F(AnswerTest, AStreamOfSeveralChoicesSaysWhatThePlainAnswerSays) {
  const auto engine = make_engine();
  // Often, so that some choices end before the last one was accepted.
  for (const std::int32_t max_tokens : {1, 1, 1, 1, 2, 20}) {
    const auto plain = std::make_shared<Recorder>();
    const auto stream = std::make_shared<Recorder>();
    ASSERT_TRUE(start(*engine, choices(6, max_tokens), plain, false));
    ASSERT_TRUE(start(*engine, choices(6, max_tokens), stream, true));
    const json::value body = plain->wait_response();
    std::vector<std::string> texts(6);
    std::vector<std::string> events = stream->wait_end();
    ASSERT_GE(events.size(), 8u);
    EXPECT_EQ(events.back(), "[DONE]");
    events.pop_back();
    const json::value usage = json::parse(events.back()).at("usage");
    events.pop_back();
    for (const std::string& event : events) {
      const json::value choice = json::parse(event).at("choices").at(0);
      texts[static_cast<std::size_t>(choice.at("index").as_int64())] +=
          choice.at("text").as_string();
    }
    for (std::size_t i = 0; i < 6; ++i) {
      EXPECT_EQ(texts[i], std::string_view(body.at("choices").at(i).at("text").as_string()));
    }
    const auto prompt = static_cast<std::int64_t>(request(2).prompt.size());
    for (const json::value& counts : {usage, body.at("usage")}) {
      EXPECT_EQ(counts.at("prompt_tokens"), prompt) << "once, however many choices";
      EXPECT_EQ(counts.at("completion_tokens"), 6 * max_tokens);
    }
  }
}

TEST_F(AnswerTest, IsAcceptedAsAWholeOrRefusedAsAWhole) {
  const auto engine = make_engine({.max_num_seqs = 1, .max_queue = 2});
  for (const bool stream : {false, true}) {
    const auto recorder = std::make_shared<Recorder>();
    const auto refused = start(*engine, choices(40, 200), recorder, stream);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
    wait_idle(*engine);
    EXPECT_TRUE(recorder->silent()) << "the answer is the caller's";
  }
  const auto recorder = std::make_shared<Recorder>();
  ASSERT_TRUE(start(*engine, choices(2), recorder, false));
  recorder->wait_response();
}

TEST_F(AnswerTest, AChoiceThatFailsEndsTheAnswer) {
  const auto engine = make_engine();
  for (const bool stream : {false, true}) {
    std::vector<ChoiceRequest> list = choices(3, 200);
    list[1].generate.deadline = Clock::now() - std::chrono::seconds(1);
    const auto recorder = std::make_shared<Recorder>();
    ASSERT_TRUE(start(*engine, std::move(list), recorder, stream));
    // A token of another choice may have opened the stream before.
    if (recorder->wait_over()) {
      EXPECT_TRUE(stream);
      const std::vector<std::string> events = recorder->wait_end();
      ASSERT_GE(events.size(), 2u);
      EXPECT_EQ(events.back(), "[DONE]");
      EXPECT_EQ(json::parse(events[events.size() - 2]).at("error").at("code"), "deadline_exceeded");
    } else {
      EXPECT_EQ(recorder->wait_response(504).at("error").at("code"), "deadline_exceeded");
    }
    wait_idle(*engine);
  }
}

TEST_F(AnswerTest, AClientThatLeavesOrReadsTooSlowlyEndsAllChoices) {
  const auto engine = make_engine();
  const auto leaving = std::make_shared<Recorder>();
  ASSERT_TRUE(start(*engine, choices(3, 230), leaving, true));
  leaving->wait_stream();
  leaving->leave();
  wait_idle(*engine);
  const auto slow = std::make_shared<Recorder>();
  slow->unsent = 2u << 20;
  ASSERT_TRUE(start(*engine, choices(3, 230), slow, true));
  wait_idle(*engine);
  EXPECT_LT(slow->wait_end().size(), 3u * 230);
}

TEST_F(AnswerTest, TheEndOfTheEngineIsAnError) {
  auto engine = make_engine();
  const auto plain = std::make_shared<Recorder>();
  const auto stream = std::make_shared<Recorder>();
  ASSERT_TRUE(start(*engine, choices(2, 230), plain, false));
  ASSERT_TRUE(start(*engine, choices(2, 230), stream, true));
  stream->wait_stream();
  engine.reset();
  EXPECT_EQ(plain->wait_response(503).at("error").at("code"), "unavailable");
  const std::vector<std::string> events = stream->wait_end();
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(json::parse(events[events.size() - 2]).at("error").at("code"), "unavailable");
}

}  // namespace
}  // namespace moiety
