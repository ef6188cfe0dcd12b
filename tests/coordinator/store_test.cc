#include "coordinator/store.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "coordinator/sqlite.h"

namespace moiety::coordinator {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// A state that differs from those of other numbers in every part.
DurableState state_of(std::uint64_t number) {
  DurableState state;
  state.epoch_counter = number;
  state.incarnation_counter = 1'800'000'000'000 + number;
  state.operation_counter = 3 * number;
  state.router_counter = static_cast<std::uint32_t>(number) + 5;
  EpochView view;
  view.placement.epoch = Epoch{number};
  view.placement.owners = {{{WorkerId{0}}, {WorkerId{1}, WorkerId{2}}, {}}, {}};
  view.placement.router_experts = {{0, static_cast<std::int32_t>(number % 2)}, {0, 2}};
  view.workers = {{WorkerId{1}, number, "127.0.0.1:4711"}};
  view.deployments = {{"", {true, {{0, 1, 2}, {}}}, false, MissingPolicy::kWait},
                      {"python", {false, {{1}, {}}}, number % 2 == 0, MissingPolicy::kMask}};
  state.published = view;
  state.steady = view.placement;
  state.steady.owners[0][0] = {WorkerId{static_cast<std::uint32_t>(number % 7)}};
  state.workers = {{WorkerId{1}, number, {4242, ~std::uint64_t{0} - number}, true, false, true, 5},
                   {WorkerId{2}, number, {}, false, true, false, number}};
  for (std::uint64_t i = number; i < number + 3; ++i) {
    DurableOperation operation;
    operation.id = {"op-" + std::to_string(i) + " \"ä'"};
    operation.kind = OperationKind::kDrain;
    operation.state = OperationState::kFailed;
    operation.name = "na:me";
    operation.worker = WorkerId{3};
    operation.deployments = {view.deployments[1]};
    operation.request_hash = ~i;
    operation.error = Error{ErrorCode::kResourceExhausted, "too full"};
    operation.rolled_back = i % 2 == 0;
    operation.epoch = Epoch{i};
    operation.cost = {1, 2, 3, 4};
    state.operations.push_back(operation);
  }
  return state;
}

class StoreTest : public testing::Test {
 protected:
  StoreTest() {
    std::string name = (std::filesystem::temp_directory_path() / "moiety-store-XXXXXX").string();
    dir_ = ::mkdtemp(name.data());
    file_ = dir_ / "sub" / "state.sqlite";
  }
  ~StoreTest() override { std::filesystem::remove_all(dir_); }

  Result<Store> open(const std::string& fingerprint = "fp") {
    return Store::open(file_, fingerprint);
  }
  std::string refusal(ErrorCode code, const std::string& fingerprint = "fp") {
    const auto store = open(fingerprint);
    EXPECT_FALSE(store);
    if (store) return "";
    EXPECT_EQ(store.error().code, code) << store.error().message;
    EXPECT_THAT(store.error().message, HasSubstr(file_.string()));
    return store.error().message;
  }
  void execute(const std::string& sql) {
    auto database = SqliteDatabase::open(file_);
    ASSERT_TRUE(database);
    const auto done = database->execute(sql);
    ASSERT_TRUE(done) << done.error().message;
  }

  std::filesystem::path dir_;
  std::filesystem::path file_;
};

TEST_F(StoreTest, GivesBackWhatItWasGiven) {
  {
    auto store = open();
    ASSERT_TRUE(store) << store.error().message;
    EXPECT_FALSE(store->restored());
    ASSERT_TRUE(store->set_identity({"fp", "secret", 4711, 8001}));
    for (std::uint64_t number : {1, 2, 7}) ASSERT_TRUE(store->persist(state_of(number)));
  }
  const auto store = open();
  ASSERT_TRUE(store) << store.error().message;
  ASSERT_TRUE(store->restored());
  EXPECT_TRUE(*store->restored() == state_of(7));
  EXPECT_EQ(store->identity(), (StoreIdentity{"fp", "secret", 4711, 8001}));
}

TEST_F(StoreTest, SmallAndEmptyStatesToo) {
  DurableState state;
  { ASSERT_TRUE(open()->persist(state)); }
  EXPECT_TRUE(*open()->restored() == state);
  { ASSERT_TRUE(open()->persist(state_of(1))); }
  state = state_of(1);
  state.workers.clear();
  state.operations.clear();
  { ASSERT_TRUE(open()->persist(state)); }
  EXPECT_TRUE(*open()->restored() == state);
}

TEST_F(StoreTest, OnlyItsOwnerCanReadIt) {
  auto store = open();
  ASSERT_TRUE(store && store->persist(state_of(1)));
  for (const char* suffix : {"", "-wal", ".lock"}) {
    struct stat info {};
    ASSERT_EQ(::stat((file_.string() + suffix).c_str(), &info), 0) << suffix;
    EXPECT_EQ(info.st_mode & 0777, 0600u) << suffix;
  }
}

TEST_F(StoreTest, TwoCoordinatorsOnOneFileAreRefusedByName) {
  {
    const auto first = open();
    ASSERT_TRUE(first);
    EXPECT_THAT(refusal(ErrorCode::kFailedPrecondition),
                AllOf(HasSubstr("another coordinator"), HasSubstr(std::to_string(::getpid()))));
  }
  EXPECT_TRUE(open()) << "the first is gone";
}

// Memory shared through a file would not work on every file system, and the lock makes it needless.
TEST_F(StoreTest, NobodyElseCanReadItAndNothingIsShared) {
  for (int start = 0; start < 2; ++start) {
    auto store = open();
    ASSERT_TRUE(store && store->persist(state_of(1)));
    EXPECT_FALSE(std::filesystem::exists(file_.string() + "-shm"));
    auto other = SqliteDatabase::open(file_);
    ASSERT_TRUE(other);
    const auto read = other->integer("SELECT count(*) FROM meta");
    ASSERT_FALSE(read);
    EXPECT_THAT(read.error().message, HasSubstr("locked"));
  }
  execute("SELECT count(*) FROM meta");
}

TEST_F(StoreTest, OtherFilesAreRefused) {
  std::filesystem::create_directories(file_.parent_path());
  ASSERT_TRUE(write_file(file_, std::string(5000, 'x')));
  EXPECT_THAT(refusal(ErrorCode::kDataLoss), HasSubstr("damaged"));
  std::filesystem::remove(file_);
  execute("CREATE TABLE shopping(item)");
  EXPECT_THAT(refusal(ErrorCode::kFailedPrecondition), HasSubstr("not a coordinator's"));
}

TEST_F(StoreTest, AnotherProgramsDatabaseStaysAsItIs) {
  for (const char* mode : {"DELETE", "WAL"}) {
    std::filesystem::remove_all(file_.parent_path());
    file_ = dir_ / "100%?a#b" / mode;
    std::filesystem::create_directories(file_.parent_path());
    {
      auto database = SqliteDatabase::open(file_);
      ASSERT_TRUE(database && database->execute(std::string("PRAGMA journal_mode = ") + mode +
                                                "; CREATE TABLE shopping(item); "
                                                "PRAGMA wal_checkpoint(TRUNCATE)"));
    }
    for (const char* log : {"-wal", "-shm"}) std::filesystem::remove(file_.string() + log);
    const auto before = read_file(file_);
    EXPECT_THAT(refusal(ErrorCode::kFailedPrecondition), HasSubstr("not a coordinator's"));
    EXPECT_TRUE(*read_file(file_) == *before) << mode;
    for (const auto& each : std::filesystem::directory_iterator(file_.parent_path()))
      EXPECT_EQ(each.path().string(), file_.string()) << "left beside it";
  }
}

TEST_F(StoreTest, ANewerSchemaAndAnotherCheckpointAreRefused) {
  { ASSERT_TRUE(open()->set_identity({"fp", "secret", 1, 2})); }
  EXPECT_THAT(refusal(ErrorCode::kFailedPrecondition, "other"), HasSubstr("another checkpoint"));
  execute("PRAGMA user_version = 3");
  EXPECT_THAT(refusal(ErrorCode::kFailedPrecondition), HasSubstr("newer Moiety"));
}

TEST_F(StoreTest, AFileOfSchemaOneIsTakenOver) {
  DurableState state = state_of(1);
  { ASSERT_TRUE(open()->persist(state)); }
  execute("ALTER TABLE operations DROP COLUMN rolled_back; PRAGMA user_version = 1");
  for (DurableOperation& each : state.operations) each.rolled_back = true;  // as all failures were
  for (int start = 0; start < 2; ++start) EXPECT_TRUE(open()->restored() == state);
}

TEST_F(StoreTest, DamageIsFound) {
  { ASSERT_TRUE(open()->persist(state_of(1))); }
  execute("UPDATE placement SET value = substr(value, 1, 40) WHERE key = 'published'");
  EXPECT_THAT(refusal(ErrorCode::kDataLoss), HasSubstr("damaged"));
  execute("PRAGMA wal_checkpoint(TRUNCATE)");
  const Fd fd(::open(file_.c_str(), O_RDWR));
  const std::string garbage(3 * 4096, '\x5a');
  ASSERT_EQ(::pwrite(fd.get(), garbage.data(), garbage.size(), 4096),
            static_cast<ssize_t>(garbage.size()));
  EXPECT_THAT(refusal(ErrorCode::kDataLoss), HasSubstr("damaged"));
}

TEST_F(StoreTest, ProcessesOfBeforeAReboot) {
  { ASSERT_TRUE(open()->persist(state_of(1))); }
  auto left = Store::workers_left_in(file_);
  ASSERT_TRUE(left) << left.error().message;
  EXPECT_EQ(*left, state_of(1).workers);
  execute("UPDATE meta SET value = 'another' WHERE key = 'boot_id'");
  left = Store::workers_left_in(file_);
  ASSERT_TRUE(left) << left.error().message;
  EXPECT_THAT(*left, testing::IsEmpty());
  const auto store = open();
  ASSERT_TRUE(store && store->restored());
  EXPECT_EQ(store->restored()->workers[0].process, ProcessIdentity{});
  EXPECT_TRUE(store->restored()->workers[0].runs);
}

TEST_F(StoreTest, AFullDiskLosesNothingAndIsOverWhenThereIsRoom) {
  {
    auto store = open();
    ASSERT_TRUE(store && store->persist(state_of(1)));
    // Losses and restarts fit into the reserve that every store has; a very large state does not.
    ASSERT_TRUE(store->limit_size(Store::kReserveBytes + (64 << 10)));
    DurableState large = state_of(2);
    large.operations.back().error->message.assign(2 * Store::kReserveBytes, 'x');
    const auto full = store->persist(large);
    ASSERT_FALSE(full);
    EXPECT_EQ(full.error().code, ErrorCode::kResourceExhausted);
    EXPECT_THAT(full.error().message, AllOf(HasSubstr("state.sqlite"), HasSubstr("full")));
    ASSERT_TRUE(store->persist(state_of(3))) << "smaller ones still fit";
    ASSERT_TRUE(store->limit_size(std::uint64_t{1} << 30));
    ASSERT_TRUE(store->persist(large));
  }
  EXPECT_EQ(open()->restored()->operations.back().error->message.size(), 2 * Store::kReserveBytes);
}

/// A state whose file needs `bytes` more than that of state_of(number).
DurableState large_state_of(std::uint64_t number, std::size_t bytes) {
  DurableState state = state_of(number);
  state.operations.back().error->message.assign(bytes, static_cast<char>('a' + number % 26));
  return state;
}

/// Persists losses and restarts enough to fill the log many times, and finds them again.
Result<void> write_within_the_reserve(const std::filesystem::path& file) {
  {
    MOIETY_ASSIGN(Store store, Store::open(file, "fp"));
    for (std::uint64_t number = 2; number < 400; ++number) {
      const bool large = number % 40 == 0;
      auto done = store.persist(large ? large_state_of(number, 300 << 10) : state_of(number));
      if (!done) return with_context("state " + std::to_string(number), done.error());
    }
  }
  MOIETY_ASSIGN(const Store store, Store::open(file, "fp"));
  if (store.restored() && *store.restored() == state_of(399)) return {};
  return fail(ErrorCode::kInternal, "another state came back");
}

/// While it lives this process can make no file longer than `bytes`.
class LongestFile {
 public:
  explicit LongestFile(std::uint64_t bytes) {
    ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~LongestFile() { ::setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

TEST_F(StoreTest, TheReserveSurvivesACleanStop) {
  const std::filesystem::path log = file_.string() + "-wal";
  { ASSERT_TRUE(open()->persist(state_of(1))); }
  ASSERT_TRUE(std::filesystem::exists(log));
  ASSERT_GE(std::filesystem::file_size(log), Store::kReserveBytes);
  {
    const LongestFile limit(
        std::max(std::filesystem::file_size(log), std::filesystem::file_size(file_)));
    const auto written = write_within_the_reserve(file_);
    EXPECT_TRUE(written) << written.error().message;
  }
  // The file alone is whole after a clean stop; the log of a copy is made anew.
  std::filesystem::remove(log);
  { EXPECT_TRUE(open()->restored() == state_of(399)); }
  EXPECT_GE(std::filesystem::file_size(log), Store::kReserveBytes);
}

/// Writes files named `prefix`0, `prefix`1, ... into `folder` until its disk is full.
void fill_disk(const std::filesystem::path& folder, const std::string& prefix) {
  const std::string block(4096, 'x');
  for (int number = 0;; ++number) {
    const Fd fd(::open((folder / (prefix + std::to_string(number))).c_str(),
                       O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd) return;
    ssize_t wrote = 0;
    std::int64_t total = 0;
    while ((wrote = ::write(fd.get(), block.data(), block.size())) > 0) total += wrote;
    if (total == 0) return;
  }
}

/// Runs `body` in a process of its own whose `folder` is a disk of 12 MiB. nullopt: this user may
/// not make such disks; else what went wrong, or nothing.
std::optional<std::string> on_small_disk(const std::filesystem::path& folder,
                                         const std::function<Result<void>()>& body) {
  constexpr int kNoDisk = 7;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return "no pipe";
  const pid_t child = ::fork();
  if (child == 0) {
    const bool root = ::geteuid() == 0;
    if (::unshare(root ? CLONE_NEWNS : CLONE_NEWNS | CLONE_NEWUSER) != 0 ||
        (root && ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) ||
        ::mount("tmpfs", folder.c_str(), "tmpfs", 0, "size=12m") != 0)
      ::_exit(kNoDisk);
    const auto done = body();
    const std::string said = done ? "" : done.error().message;
    ::_exit(::write(ends[1], said.data(), said.size()) == static_cast<ssize_t>(said.size()) ? 0
                                                                                            : 1);
  }
  const Fd from(ends[0]);
  ::close(ends[1]);
  std::string said;
  char buffer[512];
  for (ssize_t got = 0; (got = ::read(from.get(), buffer, sizeof buffer)) > 0;)
    said.append(buffer, static_cast<std::size_t>(got));
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoDisk) return std::nullopt;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) said += " (the process failed)";
  return said;
}

TEST_F(StoreTest, ARestartOnAFullDiskWritesIntoTheReserve) {
  const auto outcome = on_small_disk(dir_, [&]() -> Result<void> {
    {
      MOIETY_ASSIGN(Store store, open());
      MOIETY_TRY(store.persist(state_of(1)));
    }
    fill_disk(dir_, "a");
    MOIETY_TRY(write_within_the_reserve(file_));

    // Without the log it starts, says what is wrong, and goes on when there is room.
    for (const char* log : {"-wal", "-shm"}) std::filesystem::remove(file_.string() + log);
    fill_disk(dir_, "b");
    MOIETY_ASSIGN(Store store, open());
    const auto full = store.persist(state_of(400));
    if (full || full.error().code != ErrorCode::kResourceExhausted)
      return full ? Error{ErrorCode::kInternal, "there was room"} : full.error();
    std::filesystem::remove(dir_ / "a0");
    return store.persist(state_of(400));
  });
  if (!outcome) GTEST_SKIP() << "this user may not mount a disk";
  EXPECT_EQ(*outcome, "");
}

/// Persists state_of(first), state_of(first + 1), ... and says each number through `pipe` once it
/// is acknowledged, until it is killed.
[[noreturn]] void write_for_ever(const std::filesystem::path& file, std::uint64_t first, int pipe) {
  auto store = Store::open(file, "fp");
  if (!store) ::_exit(3);
  for (std::uint64_t number = first;; ++number) {
    if (!store->persist(state_of(number))) ::_exit(4);
    if (::write(pipe, &number, sizeof number) != sizeof number) ::_exit(5);
  }
}

TEST_F(StoreTest, WhatWasAcknowledgedSurvivesKill9) {
  { ASSERT_TRUE(open()->persist(state_of(0))); }
  std::mt19937_64 random(20260101);
  std::uint64_t acknowledged = 0;
  for (int round = 0; round < 40; ++round) {
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const pid_t writer = ::fork();
    if (writer == 0) {
      ::close(ends[0]);
      write_for_ever(file_, acknowledged + 1, ends[1]);
    }
    const Fd from(ends[0]);
    ::close(ends[1]);
    // After a random number of commits, and then at a random instant of a later one.
    const std::uint64_t commits = random() % 8;
    std::uint64_t number = 0;
    for (std::uint64_t i = 0; i < commits; ++i) {
      ASSERT_EQ(::read(from.get(), &number, sizeof number), ssize_t{sizeof number});
      acknowledged = number;
    }
    const auto until = Clock::now() + std::chrono::microseconds(random() % 20000);
    while (Clock::now() < until) {
    }
    ::kill(writer, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(writer, &status, 0), writer);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the writer ended by itself: " << WEXITSTATUS(status);
    while (::read(from.get(), &number, sizeof number) == ssize_t{sizeof number})
      acknowledged = number;

    const auto store = open();
    ASSERT_TRUE(store) << store.error().message;
    ASSERT_TRUE(store->restored());
    const std::uint64_t found = store->restored()->epoch_counter;
    // The one that was under way may be there or not, but whole.
    ASSERT_TRUE(found == acknowledged || found == acknowledged + 1)
        << found << " after " << acknowledged;
    ASSERT_TRUE(*store->restored() == state_of(found));
    acknowledged = found;
  }
}

}  // namespace
}  // namespace moiety::coordinator
