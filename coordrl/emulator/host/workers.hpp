// Threads that step environments together.
#pragma once

#include <unistd.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "types.hpp"

namespace coordrl::host {

/// Threads that wait for work.
class Crew {
 public:
  explicit Crew(i32 helpers) {
    try {
      for (i32 worker = 1; worker <= helpers; ++worker) {
        threads_.emplace_back([this, worker] { serve(worker); });
      }
    } catch (const std::system_error&) {
      dismiss();
      throw std::runtime_error("the system starts no " + std::to_string(helpers) +
                               " threads more; choose fewer with num_threads");
    }
  }

  ~Crew() { dismiss(); }

  /// Calls work(worker) once on every thread, where the caller is worker 0, and returns when all
  /// are done. If any threw an exception, rethrows one.
  void run(const std::function<void(i32)>& work) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = &work;
      running_ = threads_.size();
      ++round_;
    }
    wake_.notify_all();
    attempt(work, 0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return running_ == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void dismiss() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  void serve(i32 worker) {
    for (u64 round = 0;;) {
      const std::function<void(i32)>* work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || round_ != round; });
        if (stopping_) return;
        round = round_;
        work = work_;
      }
      attempt(*work, worker);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  void attempt(const std::function<void(i32)>& work, i32 worker) {
    try {
      work(worker);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      error_ = std::current_exception();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(i32)>* work_ = nullptr;
  size_t running_ = 0;
  u64 round_ = 0;
  bool stopping_ = false;
  std::exception_ptr error_;
  std::vector<std::thread> threads_;
};

/// A crew that is started anew after a fork, which copies a process without its threads.
class Workers {
 public:
  explicit Workers(i32 count) : count_(count) {}

  ~Workers() {
    if (process_ != getpid()) abandon();
  }

  i32 count() const { return count_; }

  void run(const std::function<void(i32)>& work) {
    if (count_ == 1) return work(0);
    if (process_ != getpid()) {
      abandon();
      crew_ = std::make_unique<Crew>(count_ - 1);
      process_ = getpid();
    }
    crew_->run(work);
  }

 private:
  // No thread is left to join, and locks may be held by threads that no longer exist.
  void abandon() { static_cast<void>(crew_.release()); }

  i32 count_;
  pid_t process_ = 0;
  std::unique_ptr<Crew> crew_;
};

}  // namespace coordrl::host
