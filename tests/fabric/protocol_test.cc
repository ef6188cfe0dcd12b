#include "fabric/protocol.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "common/secret.h"

namespace moiety::fabric {
namespace {

const LaneIdentity kPort{3, 8, "a shared secret"};

HelloRequest good_request() { return {5, 3, 8, "a shared secret"}; }

TEST(Hello, MatchingRequestIsAccepted) {
  const HelloVerdict verdict = judge_hello(encode_hello(good_request()), kPort);
  EXPECT_TRUE(verdict.accepted);
  EXPECT_EQ(verdict.router, 5u);
  EXPECT_TRUE(check_hello_answer(verdict.answer, 3, 8));
}

TEST(Hello, RefusalsCarryTheirCode) {
  const auto code_for = [](const HelloRequest& request) {
    const HelloVerdict verdict = judge_hello(encode_hello(request), kPort);
    EXPECT_FALSE(verdict.accepted);
    const auto result = check_hello_answer(verdict.answer, request.worker, request.incarnation);
    EXPECT_FALSE(result);
    return result ? ErrorCode::kInternal : result.error().code;
  };
  HelloRequest request = good_request();
  request.token.back() = 'T';
  EXPECT_EQ(code_for(request), ErrorCode::kInvalidArgument);
  request = good_request();
  request.incarnation = 9;
  EXPECT_EQ(code_for(request), ErrorCode::kLeaseLost);
  request = good_request();
  request.worker = 4;
  EXPECT_EQ(code_for(request), ErrorCode::kLeaseLost);
  request.token = "wrong too";  // the token goes first: strangers learn nothing of the worker
  EXPECT_EQ(code_for(request), ErrorCode::kInvalidArgument);
}

TEST(Hello, OtherVersionIsRefusedOnBothSides) {
  auto request = encode_hello(good_request());
  request[4] = std::byte{kLaneVersion + 1};
  const HelloVerdict verdict = judge_hello(request, kPort);
  EXPECT_FALSE(verdict.accepted);
  const auto refused = check_hello_answer(verdict.answer, 3, 8);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kFailedPrecondition);

  auto answer = judge_hello(encode_hello(good_request()), kPort).answer;
  answer[4] = std::byte{kLaneVersion + 1};
  const auto other = check_hello_answer(answer, 3, 8);
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code, ErrorCode::kFailedPrecondition);
}

TEST(Hello, AnswerOfAnotherWorkerIsNotTaken) {
  const auto answer = judge_hello(encode_hello(good_request()), kPort).answer;
  for (const auto& [worker, incarnation] : {std::pair(4, 8), std::pair(3, 9)}) {
    const auto result = check_hello_answer(answer, worker, incarnation);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, ErrorCode::kLeaseLost);
  }
}

// Every cut and every single flipped byte either changes nothing that matters or is refused; none
// crashes.
TEST(Hello, DamagedBytesAreRefused) {
  const auto request = encode_hello(good_request());
  const auto answer = judge_hello(request, kPort).answer;
  for (std::size_t size = 0; size < request.size(); ++size) {
    EXPECT_FALSE(judge_hello({request.data(), size}, kPort).accepted) << size;
  }
  for (std::size_t size = 0; size < answer.size(); ++size) {
    EXPECT_FALSE(check_hello_answer({answer.data(), size}, 3, 8)) << size;
  }
  for (std::size_t at = 0; at < request.size(); ++at) {
    auto damaged = request;
    damaged[at] ^= std::byte{0x80};
    const bool in_router_id = at >= 8 && at < 16;
    EXPECT_EQ(judge_hello(damaged, kPort).accepted, in_router_id) << at;
  }
  auto longer = request;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(judge_hello(longer, kPort).accepted);
}

TEST(Hello, SecretsAreComparedWhole) {
  EXPECT_TRUE(secrets_equal("", ""));
  EXPECT_TRUE(secrets_equal("abc", "abc"));
  EXPECT_FALSE(secrets_equal("", "abc"));
  EXPECT_FALSE(secrets_equal("abc", ""));
  EXPECT_FALSE(secrets_equal("abcabc", "abc"));
  EXPECT_FALSE(secrets_equal("ab", "abc"));
  EXPECT_FALSE(secrets_equal("abd", "abc"));
  EXPECT_FALSE(secrets_equal("Abc", "abc"));
  EXPECT_FALSE(secrets_equal(std::string_view("\0", 1), ""));
}

TEST(Lane, HeaderIsCheckedForMagicAndKind) {
  Header header;
  EXPECT_TRUE(valid_header(header));
  header.kind = static_cast<Kind>(4);
  EXPECT_FALSE(valid_header(header));
  header.kind = static_cast<Kind>(0);
  EXPECT_FALSE(valid_header(header));
  header = {};
  header.magic ^= 1;
  EXPECT_FALSE(valid_header(header));
}

TEST(Lane, ReplyAnswersOnlyItsOwnDispatch) {
  Header dispatch;
  dispatch.epoch = 1;
  dispatch.step = 2;
  dispatch.attempt = 3;
  dispatch.layer = 4;
  dispatch.incarnation = 5;
  Header reply = dispatch;
  reply.kind = Kind::kReply;
  reply.sent_ns = 99;
  EXPECT_TRUE(reply.answers(dispatch));
  for (auto field : {&Header::epoch, &Header::step, &Header::incarnation}) {
    Header other = reply;
    other.*field += 1;
    EXPECT_FALSE(other.answers(dispatch));
  }
  for (auto field : {&Header::attempt, &Header::layer}) {
    Header other = reply;
    other.*field += 1;
    EXPECT_FALSE(other.answers(dispatch));
  }
}

TEST(Lane, PayloadSizeIsBounded) {
  EXPECT_TRUE(check_payload_size(0));
  EXPECT_TRUE(check_payload_size(kMaxPayloadBytes));
  EXPECT_FALSE(check_payload_size(kMaxPayloadBytes + 1));
}

}  // namespace
}  // namespace moiety::fabric
